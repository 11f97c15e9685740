"""The environment of training processes: offline libraries, and a compile cache that processes share through the store.

    cache/compile/<user id>/<torch>-<python>-<processor>/     inductor/, triton/

torch reads pickles from its compile cache, so the store's is used only if nobody else can write to it: the folder belongs to
this user and has mode 0700. Compilers build for the processor they run on (-march=native), so the kind of processor is part of
the path; the GPU that a kernel is for is part of the kernel's name. If the file system has no locks, or if the user has set
TORCHINDUCTOR_CACHE_DIR, torch keeps its own cache on this machine.
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

OFFLINE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before the libraries are imported: training needs no network, and its log no progress bars."""
FOLDER = Path("cache") / "compile"
DEFAULT = "torchinductor_"
"""How the name of torch's own cache folder begins, which torch sets in the environment when it is imported."""


def compile_cache(store: Path) -> Mapping[str, str]:
    """The environment variables that make torch keep compiled code in the store; empty if it must not.

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
    """A short name for the kind of processor: eight digits of a hash over its model and features."""
    description = platform.machine()
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return hashlib.sha256(description.encode()).hexdigest()[:8]
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    description += "\n".join(line for line in first if line.partition("\t")[0].partition(":")[0].strip() in kept)
    return hashlib.sha256(description.encode()).hexdigest()[:8]


def _is_private(folder: Path) -> bool:
    """Whether nobody else can write below a folder."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _has_locks(folder: Path) -> bool:
    """Whether flock works; torch uses it so that two processes do not compile the same code. Raises OSError if not."""
    with (folder / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
