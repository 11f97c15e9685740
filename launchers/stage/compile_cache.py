"""Where compiled steps are kept between processes: in the store, for one user, one torch and one kind of processor.

    cache/compile/<user id>/<torch>-<python>-<processor>/     inductor/, triton/

torch reads pickles from there, so a folder is used only where nobody else can write: it belongs to this user, with mode
0700. Compilers are told to build for the very processor they run on (-march=native), so its kind is part of the path; what
GPU a kernel is for is part of its name there. Files are written beside and renamed. Where that cannot be, on a file system
without locks, or where the user has set TORCHINDUCTOR_CACHE_DIR, torch keeps to its own place on this machine.
"""

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path("cache") / "compile"
DEFAULT = "torchinductor_"
"""How the folder is called that torch chooses itself, and enters into the environment when it is imported."""


def compile_cache(store: Path) -> Mapping[str, str]:
    """The environment variables that make torch keep compiled code in the store, empty where it must not.

    To be set before anything is compiled.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen is not None and not Path(chosen).name.startswith(DEFAULT):
        return {}
    versions = f"{importlib.metadata.version('torch')}-py{sys.version_info.major}.{sys.version_info.minor}"
    mine = store.absolute() / FOLDER / str(os.geteuid())
    place = mine / f"torch{versions}-{processor()}"
    try:
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.mkdir(mode=0o700, exist_ok=True)
        place.mkdir(exist_ok=True)
        if not (_is_private(mine) and _has_locks(place)):
            return {}
    except OSError:
        return {}
    return {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TRITON_CACHE_DIR": str(place / "triton")}


def processor() -> str:
    """A short name of the kind of processor: eight digits of what it calls itself and what it can do."""
    told = platform.machine()
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return hashlib.sha256(told.encode()).hexdigest()[:8]
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    told += "\n".join(line for line in first if line.partition("\t")[0].partition(":")[0].strip() in kept)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _is_private(folder: Path) -> bool:
    """Whether nobody else can write below a folder."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _has_locks(folder: Path) -> bool:
    """Whether flock works, by which torch keeps two processes from compiling the same. Raises OSError where it does not."""
    with (folder / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
