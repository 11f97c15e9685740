"""The process that a local launcher starts for each rank: it logs into the run and dies with its launcher."""

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from retain.launchers.stage.compile_cache import compile_cache
from retain.launchers.stage.ranks import Group
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StageFailedError

FAILED, BUSY, STOPPED, NO_ROOM = 1, 74, 75, 76
"""Exit codes: the stage failed; another process trains the run; a signal stopped it and its state is saved; the disk is
full, so that nothing more could be written about it."""

STOP_GRACE_S = 30.0
"""How long a process may take to save its state once it was told to stop."""


def work(
    root: Path, key: str, rank: int, world: int, environment: Mapping[str, str], launcher: Connection, pack: int = 1
) -> None:
    """Train one run as one of `world` ranks, as long as `launcher` is open; exits with 1 where the stage failed.

    With a pack of several, says "done" after each, and goes on with the run that `launcher` names then, if any.
    """
    stop = StopRequest()
    stop.install()
    named: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(launcher, named), daemon=True).start()
    os.environ.update(environment)
    following = key
    while following:
        log_into(root / following / "log.txt")
        say(f"rank {rank} of {world}: process {os.getpid()} begins")
        code, ending = train_one(Store(root), following, Group(rank, world), stop)
        say(f"rank {rank}: {ending}")
        pack -= 1
        following = _next_run(launcher, named, stop) if code == 0 and pack else ""
    # The libraries' exit handlers may wait for a rank that is gone.
    os._exit(code)


def _next_run(launcher: Connection, named: "queue.SimpleQueue[str]", stop: StopRequest) -> str:
    """The key of the run to go on with, empty where there is none."""
    gc.collect()
    with contextlib.suppress(OSError):
        launcher.send_bytes(b"done")
    while stop.signal is None:
        with contextlib.suppress(queue.Empty):
            return named.get(timeout=0.1)
    return ""


def train_one(store: Store, key: str, group: Group, stop: StopRequest) -> tuple[int, str]:
    """Train one run as one of its ranks; returns the exit code, and what the log says of it."""
    os.environ.update(compile_cache(store.root))
    # What it imports is there already where a fork server has preloaded it.
    from retain.launchers.stage.failures import DISK
    from retain.launchers.stage.training.resume import StageStopped
    from retain.launchers.stage.training.run import RunBusyError, run_stage

    try:
        run_stage(store, key, group, stop)
    except StageFailedError as error:
        return (NO_ROOM if error.failure == DISK else FAILED), f"failed: {error}"
    except StageStopped as stopped:
        return STOPPED, f"stopped by {stopped}, its state is saved"
    except RunBusyError as busy:
        return BUSY, str(busy)
    return 0, "done"


def say(line: str) -> None:
    """A line of the log; a disk without room for it stops nothing."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def _listen(launcher: Connection, named: "queue.SimpleQueue[str]") -> None:
    """Pass on what the launcher says; once it is gone, stop at the next step, or at once where that takes too long."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            named.put(launcher.recv_bytes().decode())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_S)
    os._exit(FAILED)


def log_into(path: Path) -> None:
    """Send standard output and error, also of libraries written in C, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
