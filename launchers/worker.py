"""The process that a local launcher starts for each rank: it logs into the run and dies with its launcher."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from launchers.signals import StopRequest

FAILED, BUSY, STOPPED = 1, 74, 75
"""Exit codes: the stage failed; another process trains the run; a signal stopped it and its state is saved."""

STOP_GRACE_S = 30.0
"""How long a process may take to save its state once it was told to stop."""


def work(root: Path, key: str, rank: int, world: int, environment: Mapping[str, str], launcher: Connection) -> None:
    """Train one run as one of `world` ranks, as long as `launcher` is open; exits with 1 where the stage failed."""
    stop = StopRequest()
    stop.install()
    threading.Thread(target=_stop_with, args=(launcher,), daemon=True).start()
    os.environ.update(environment)
    _log_into(root / key / "log.txt")
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} of {world}: process {os.getpid()} begins", flush=True)

    from launchers.resume import StageStopped
    from launchers.run_stage import Group, RunBusyError, run_stage
    from results.store import Store
    from sweeps.errors import StageFailedError

    try:
        run_stage(Store(root), key, Group(rank, world), stop)
    except StageFailedError as error:
        print(f"failed: {error}", flush=True)
        sys.exit(FAILED)
    except StageStopped as stopped:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}: stopped by {stopped}, its state is saved", flush=True)
        sys.exit(STOPPED)
    except RunBusyError as busy:
        print(f"rank {rank}: {busy}", flush=True)
        sys.exit(BUSY)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}: done", flush=True)


def _stop_with(launcher: Connection) -> None:
    """Once the launcher is gone: stop at the next step, or at once where that takes too long."""
    with contextlib.suppress(EOFError, OSError):
        launcher.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_S)
    os._exit(FAILED)


def _log_into(path: Path) -> None:
    """Send standard output and error, also of libraries written in C, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
