"""A lock for the moments in which a process reads a small file, changes it and writes it back."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from retain.sweeps.base.processes.names import is_gone, process_name

ABANDONED_S = 10.0
"""How long a lock of another machine may stay unchanged before it counts as left behind by a killed process."""
POLL_S = 0.005


@contextlib.contextmanager
def short_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path` during the block. Raises OSError if the folder cannot be written.

    The lock is a file that only one process can create, also on NFS, and that names its owner. The lock of a process of this
    machine that has died is removed at once. On another machine only ABANDONED_S without a change show that, measured by
    this process's own clock.
    """
    own = f"{process_name()} {os.urandom(4).hex()}".encode()
    seen, since = b"", time.monotonic()
    while not _create(path, own):
        owner = _read(path)
        if owner != seen:
            seen, since = owner, time.monotonic()
        if (
            owner and is_gone(owner.decode(errors="replace").partition(" ")[0])
        ) or time.monotonic() - since > ABANDONED_S:
            _remove(path, owner)
        else:
            time.sleep(POLL_S)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _create(path: Path, own: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with contextlib.suppress(OSError):  # on a full disk the lock names no owner, but still works
        os.write(descriptor, own)
    os.close(descriptor)
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _remove(path: Path, owner: bytes) -> None:
    """Remove a lock that was left behind, unless another process has replaced it meanwhile."""
    aside = path.with_name(f".{path.name.strip('.')}.{os.getpid()}.{os.urandom(4).hex()}")
    with contextlib.suppress(FileNotFoundError, FileExistsError):
        path.rename(aside)
        if _read(aside) != owner:
            os.link(aside, path)
    aside.unlink(missing_ok=True)
