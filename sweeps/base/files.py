"""Atomic files: content is written to a temporary file in the target's folder, synced to disk and renamed into place."""

import contextlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError, os_cure, os_reason
from retain.sweeps.base.units import shortened


@contextlib.contextmanager
def writing(place: str, cure: str) -> Iterator[None]:
    """Write to a place in the block. Raises MissingResourceError if something cannot be written; `cure` helps in any case."""
    try:
        yield
    except OSError as error:
        raise MissingResourceError(
            f"{place}: cannot be written ({os_reason(error)}); {os_cure(error, cure)}"
        ) from error


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Replace a file with this text, in UTF-8. Readers see either the old or the new text. mode: as in `write_bytes`.

    Bytes of file names that are not UTF-8 (surrogate escapes in the text) are written as they are.
    """
    write_bytes(path, text.encode(errors="surrogateescape"), mode=mode)


def write_bytes(path: Path, content: bytes, sync: bool = True, mode: int | None = None) -> None:
    """Replace a file with this content. Readers see either the old or the new content. Raises DamageError for a folder.

    sync: whether to wait until the content is on disk. Without it, a crash of the machine may leave the file empty, so it
    suits only files that are recreated then. mode: the permissions, such as 0o600; None for those of any new file.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        with open(temporary, "wb", opener=None if mode is None else partial(os.open, mode=mode)) as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, IsADirectoryError):
            raise DamageError(f"{path} is not a file; delete it and try again") from None
        if isinstance(error, OSError):
            error.filename = str(path)  # users know the file, not its temporary name
            del error.filename2
        raise


def share(path: Path) -> None:
    """Give a file that a library has made private the mode of any new file in its folder (umask, default ACL)."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    beside.touch()
    path.chmod(stat.S_IMODE(beside.stat().st_mode))
    beside.unlink()


def write_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Replace a file with a value as indented JSON; `mode` as in `write_bytes`. Raises ValueError for NaN and infinities."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", mode)


def is_file(name: str) -> bool:
    """Whether this is the path of a file. False for text that cannot be a path, such as an override with a long list."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def user_path(typed: str | Path, option: str) -> Path:
    """The path that a user has typed, with ~ as the home folder. Raises StudyError, beginning with `option`, if it is none."""
    shown = f"{option} {shortened(repr(str(typed)))}"
    if not str(typed).strip():
        raise StudyError(f"{shown}: the path is empty; name a folder, or write . for the current one")
    try:
        path = Path(typed).expanduser()
        path.exists()
    except RuntimeError:
        raise StudyError(f"{shown}: the home folder of ~ is unknown; write the path from / on") from None
    except PermissionError:
        return path
    except (OSError, ValueError) as error:
        raise StudyError(
            f"{shown}: not a path ({os_reason(error) if isinstance(error, OSError) else error}); name another one"
        ) from None
    return path


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with everything in it. Raises OSError if something cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_system_time(folder: Path) -> float:
    """The time by the clock that sets modification times in a folder, in seconds since 1970; it may be another machine's.

    Raises OSError if the folder cannot be written.
    """
    probe = folder / f".probe.{socket.gethostname()}.{time.monotonic_ns()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def sync_folder(folder: Path) -> None:
    """Sync every file below a folder, and the folders' entries, to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_path(path)


def sync_path(path: Path) -> None:
    """Sync one file, or one folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
