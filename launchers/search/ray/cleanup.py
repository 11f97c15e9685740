"""Makes sure that no Ray process outlives its search, however the search ends.

Ray's head processes end with the driver that started them, but some of their children only minutes later. So each Ray cluster
has a folder of its own, in which all its processes keep their logs open. A guard process waits until the driver has ended,
kills the processes that still have the folder open, and removes it. Training processes are left alone: they save a checkpoint
and end by themselves.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from retain.launchers.stage.signals import block_stop_signals
from retain.sweeps.base.processes.names import is_gone, process_name
from retain.sweeps.base.surroundings import library_imports, temporary_folder

PREFIX = "retain-ray-"
MARK = "RETAIN_RAY"
"""An environment variable with the folder, for a Ray node in an allocation and all processes below it."""
POLLS, BETWEEN_S = 20, 0.5
"""A dying Ray starts no new processes, but those it has just started may appear late."""


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for a Ray cluster of this process, with a guard; what dead drivers have left is removed first."""
    for left in Path(temporary_folder()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or being created
            if is_gone((left / "driver").read_text()):
                clean_up(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary_folder()))
    (folder / "driver").write_text(process_name())
    command = [sys.executable, "-m", "retain.launchers.search.ray.cleanup", str(folder)]
    with block_stop_signals(), library_imports():
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    with guard:
        # Leaving closes the guard's input and waits for it; the end of this process would close it too.
        yield folder


def trainers(folder: Path) -> list[int]:
    """The processes below the Ray cluster of this folder that are not Ray's own: they train, or are about to."""
    mark, own = f"{MARK}={folder}".encode(), set(_ray_processes())
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            if mark in (place / "environ").read_bytes().split(b"\0") and int(place.name) not in own:
                found.append(int(place.name))
    return found


def clean_up(folder: Path) -> None:
    """Kill the Ray processes that have this folder open, and remove it."""
    for _ in range(POLLS):
        strays = processes_of(folder)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if not strays and not folder.exists():
            return
        time.sleep(BETWEEN_S)


def processes_of(folder: Path) -> list[int]:
    """The Ray processes that have a file open in this folder or below."""
    return [pid for pid in _ray_processes() if _has_open(pid, folder)]


def _ray_processes() -> list[int]:
    """Ray's workers are named `ray::`, and its other processes run its files; a fork server and its children do neither."""
    spec = importlib.util.find_spec("ray")
    files = f"{os.path.dirname(spec.origin or '')}/".encode() if spec else b"ray::"
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (place / "cmdline").read_bytes().split(b"\0")
            if words[0].startswith(b"ray::") or any(word.startswith(files) for word in words[:4]):
                found.append(int(place.name))
    return found


def _has_open(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):  # another user's, or gone
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith(f"{folder}/"):
                    return True
    return False


def _guard(folder: Path) -> None:
    sys.stdin.buffer.read()  # until the driver closes it, or is gone
    clean_up(folder)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
