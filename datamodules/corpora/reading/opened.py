"""Open a file as text: decompressed, decoded and checked."""

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from retain.datamodules.corpora.find import SourceFile, shown
from retain.sweeps.base.errors import StudyError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
CONTENTS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh91AY&SY": "bz2",
    b"\xfd7zXZ\0": "it is an xz archive); decompress it with `xz -d`",
    b"PK\3\4": "it is a zip archive); unpack it with `unzip`",
    b"PAR1": "it is a parquet file); let its name end with .parquet",
    b"ARROW1": "it is an Arrow file); let its name end with .arrow",
}
"""What the first bytes of a file say it is: a compression, or the end of an error message."""
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLOCK = 1 << 20
"""Characters that are read at a time."""


def open_text(file: SourceFile) -> TextIO:
    """Open a text file, decompressed. Bytes that are not UTF-8 become lone surrogates, for a check that knows their line."""
    plain = cast(
        io.BufferedReader,
        file.open("rb") if isinstance(file, Path) else io.BufferedReader(cast(io.RawIOBase, file.open()), BLOCK),
    )
    try:
        stream = _decompressed(plain, file)
        start = stream.peek(4)
        encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8")
        return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape")
    except BaseException:
        plain.close()
        raise


def _decompressed(plain: io.BufferedReader, file: SourceFile) -> io.BufferedReader:
    head = plain.peek(16)
    compression = COMPRESSIONS.get(file.suffix.lower())
    if compression is None:
        compression = next((what for magic, what in CONTENTS.items() if head.startswith(magic)), None)
    elif not head:
        raise ValueError(f"it is empty, expected {compression} data")
    if compression is None:
        return plain
    if compression == "gzip":
        return cast(io.BufferedReader, gzip.GzipFile(fileobj=plain))
    if compression in COMPRESSIONS.values():
        import pyarrow

        # Not `zstandard` and `bz2`: they accept truncated files, or garbage behind the data, as complete.
        source = str(file) if isinstance(file, Path) else plain
        return io.BufferedReader(pyarrow.input_stream(source, compression=compression))
    raise StudyError(f"{shown(file)}: cannot be read ({compression}")


def checked(text: str, name: str, line: int) -> str:
    """The text, which begins in a line of a file. Raises StudyError if its bytes were not UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            line += text.count("\n", 0, error.start)
            raise StudyError(
                f"{name}, line {line}: cannot be read (byte 0x{ord(text[error.start]) & 0xFF:02x} is not UTF-8); convert the "
                "file, for instance with `iconv -f LATIN1 -t UTF-8`"
            ) from None
    return text


def checked_lines(stream: TextIO, name: str) -> Iterator[str]:
    """Yield the lines of a text. Raises as `checked_blocks` does."""
    for number, line in enumerate(stream, 1):
        yield _without_zeros(checked(line, name, number), name, number)


def checked_blocks(stream: TextIO, name: str) -> Iterator[str]:
    """Yield a text in blocks. Raises StudyError if it is not UTF-8, or holds a NUL, as binary files and UTF-16 do."""
    line = 1
    while block := stream.read(BLOCK):
        yield _without_zeros(checked(block, name, line), name, line)
        line += block.count("\n")


def _without_zeros(text: str, name: str, line: int) -> str:
    """The text, which begins in a line of a file. Raises StudyError if it holds a NUL."""
    zero = text.find("\0")
    if zero >= 0:
        line += text.count("\n", 0, zero)
        raise StudyError(
            f"{name}, line {line}: cannot be read (it holds a NUL, so it is UTF-16 or not text); convert the file, for "
            "instance with `iconv -f UTF-16LE -t UTF-8`"
        )
    return text
