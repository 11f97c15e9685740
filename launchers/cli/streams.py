"""The standard streams of a command: output that cannot be written never stops the work, and never ends in a traceback."""

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from retain.sweeps.base.files import writing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ENCODING_ERRORS = "retain.write_anything"


class Output(io.FileIO):
    """A file descriptor whose writes never fail: the first error is kept in `error`, and everything after it is discarded."""

    error: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            while self.error is None:
                written: int | None = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # a program that shares the terminal or pipe has made it non-blocking
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def safe_streams() -> Iterator[Output | None]:
    """Print through `Output` in the block; yields that of standard output, or None if a caller has replaced the stream.

    Closed streams are opened on the null device, because files that are opened later would take their descriptors. What the
    encoding of the locale lacks is printed as its bytes in a file name, or else escaped.
    """
    _open_closed_descriptors()
    codecs.register_error(ENCODING_ERRORS, _bytes_or_escape)
    before = sys.stdout, sys.stderr
    output = None
    if sys.stdout is sys.__stdout__:
        output, sys.stdout = _wrapped(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        _, sys.stderr = _wrapped(2, sys.stderr)
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def write_named(option: str, path: Path, text: str) -> None:
    """Write text to a file, pipe or device that a user names, in place, as any program does; - is standard output.

    Raises MissingResourceError.
    """
    with writing(f"{option} {path}", "choose another file"), contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        # A second opening of the same file would write over the first.
        if str(path) == "-" or (path.exists() and os.path.samestat(path.stat(), os.fstat(1))):
            sys.stdout.write(text)
        else:
            path.write_text(text, encoding="utf-8")


def _wrapped(descriptor: int, stream: TextIO | None) -> tuple[Output, TextIO]:
    if stream is not None:
        stream.flush()
    raw = Output(descriptor, "w", closefd=False)
    encoding = stream.encoding if stream is not None else "utf-8"
    lines = descriptor == 2 or raw.isatty()
    return raw, io.TextIOWrapper(io.BufferedWriter(raw), encoding, ENCODING_ERRORS, line_buffering=lines)


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(descriptor, True)


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)
