"""The environment of training processes: offline libraries, and a compile cache in the store that processes share.

    cache/compile/<user id>/<torch>-<python>-<processor>/     inductor/, triton/

torch reads pickles from its compile cache, so nobody else may be able to write to it: the folder must belong to this user and
have mode 0700. Compilers build for the processor that they run on (-march=native), so the path names the processor; torch names
kernels after their GPU. If the file system has no locks, or the user has set TORCHINDUCTOR_CACHE_DIR, torch keeps its own cache
on this machine.
"""

import contextlib
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
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Set before the libraries are imported: training needs no network, and its logs no progress bars."""
FOLDER = Path("cache") / "compile"
DEFAULT = "torchinductor_"
"""The beginning of the name of torch's own cache folder, which torch puts into the environment when it is imported."""


def compile_cache(store: Path) -> Mapping[str, str]:
    """The environment variables that make torch keep compiled code in the store; empty if it must not do so.

    Set them before anything is compiled.
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
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        description += "\n".join(line for line in first if line.partition(":")[0].strip() in kept)
    return hashlib.sha256(description.encode()).hexdigest()[:8]


def _is_private(folder: Path) -> bool:
    """Whether nobody else can write below a folder."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077


def _has_locks(folder: Path) -> bool:
    """Whether flock works, which torch uses so that two processes do not compile the same code. Raises OSError if not."""
    with (folder / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
