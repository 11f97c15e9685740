"""Files that a reader sees whole or not at all: written beside, flushed to disk, renamed into place."""

import json
import os
from pathlib import Path
from typing import Any

from retain.sweeps.base.errors import MissingResourceError


def write_text(path: Path, text: str) -> None:
    """Replace a file; readers see the old text or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, flushed: bool = True) -> None:
    """Replace a file; readers see the old content or the new one.

    flushed=False does not wait for the disk: for what is made again where a crash of the machine has left it empty.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            if flushed:
                stream.flush()
                os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises FileNotFoundError, and MissingResourceError where the file is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingResourceError(
            f"{path} is damaged ({error}); delete {path.parent} and run the study again, which makes it anew"
        ) from None


def sync_folder(folder: Path) -> None:
    """Flush every file below a folder, and the folders' entries, to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_path(path)


def sync_path(path: Path) -> None:
    """Flush one file, or one folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
