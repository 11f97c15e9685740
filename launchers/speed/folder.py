"""The folder of the store in which one user's processes keep compiled code and measured speeds.

    cache/compile/<user id>/<torch>-<python>-<processor>/     inductor/, triton/, steps/

torch reads pickles from its compile cache, so nobody else may be able to write to it: the folder must belong to this user and
have mode 0700. Compilers build for the processor that they run on (-march=native), and speeds are those of one kind of
processor, so the path names the processor.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import stat
import sys
from pathlib import Path

FOLDER = Path("cache") / "compile"


def private_folder(store: Path) -> Path:
    """The path of the folder of this user and this kind of processor; it may not exist yet."""
    versions = f"{importlib.metadata.version('torch')}-py{sys.version_info.major}.{sys.version_info.minor}"
    return store.absolute() / FOLDER / str(os.geteuid()) / f"torch{versions}-{processor()}"


def made_private_folder(store: Path) -> Path | None:
    """The folder, made if it is missing; None if it is not private, its file system has no locks, or it cannot be made."""
    place = private_folder(store)
    mine = place.parent
    try:
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.mkdir(mode=0o700, exist_ok=True)
        place.mkdir(exist_ok=True)
        return place if is_private(mine) and _has_locks(place) else None
    except OSError:
        return None


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's and nobody else can write below it. Raises OSError if there is none."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def processor() -> str:
    """A short name for the kind of processor: eight digits of a hash over its model and features."""
    description = platform.machine()
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    description += "\n".join(line for line in _first_processor() if line.partition(":")[0].strip() in kept)
    return hashlib.sha256(description.encode()).hexdigest()[:8]


def processor_name() -> str:
    """The name that the kernel has for the processor."""
    names = [line.partition(":")[2].strip() for line in _first_processor() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _first_processor() -> list[str]:
    """What the kernel says about the first processor; nothing on systems without /proc."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return []


def _has_locks(folder: Path) -> bool:
    """Whether flock works, which torch uses so that two processes do not compile the same code. Raises OSError if not."""
    with (folder / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
