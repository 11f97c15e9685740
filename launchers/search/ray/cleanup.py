"""No Ray process outlives its search, however the search ends.

Ray's head processes end with the driver that started them, but some of their children do so only minutes later. So each Ray
has a folder of its own, in which all its processes keep their logs open; a guard, a process of its own, waits until the
driver has ended, ends what still has that folder open, and removes it. Processes that train are left alone: they save their
state and end by themselves.
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

from retain.sweeps.base.processes import is_gone, process_name

PREFIX = "retain-ray-"
LONGEST = 30
"""Characters of the folder for temporary files: below it Ray makes sockets, whose paths have 107 at most."""
MARK = "RETAIN_RAY"
"""The environment of a Ray node in an allocation and of all that it starts names its folder."""
LOOKS, BETWEEN_S = 20, 0.5
"""A dying Ray starts nothing new, but what it has just started may show up late."""


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for a Ray of this process's own, and a guard over it; what dead drivers have left is removed first."""
    for left in _temporary().glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just being made
            if is_gone((left / "driver").read_text()):
                clean_up(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_temporary()))
    (folder / "driver").write_text(process_name())
    command = [sys.executable, "-m", "retain.launchers.search.ray.cleanup", str(folder)]
    with deaf():
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    with guard:
        # Leaving closes the guard's input and waits for it, as the end of this process would close it.
        yield folder


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes that this thread starts meanwhile do not hear the signals that SLURM sends to every process of a job: they
    are ended in their turn. Those that train hear them again (`retain.launchers.stage.signals`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def trainers(folder: Path) -> list[int]:
    """Processes below a Ray of this folder that are none of Ray's own: they train, or are just starting to."""
    mark, own = f"{MARK}={folder}".encode(), set(_ray_processes())
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or gone
            if mark in (place / "environ").read_bytes().split(b"\0") and int(place.name) not in own:
                found.append(int(place.name))
    return found


def clean_up(folder: Path) -> None:
    """End the Ray processes that have this folder open, and remove it."""
    for _ in range(LOOKS):
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


def _temporary() -> Path:
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= LONGEST else "/tmp")


def _ray_processes() -> list[int]:
    """Its workers call themselves `ray::`, its own processes run its files; a fork server and its children do neither."""
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
