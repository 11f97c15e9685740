"""The process that a local launcher starts for each rank: it logs into the run and dies with its launcher."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path


def work(root: Path, key: str, rank: int, world: int, environment: Mapping[str, str], launcher: Connection) -> None:
    """Train one run as one of `world` ranks, as long as `launcher` is open; exits with 1 where the stage failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to answer
    threading.Thread(target=_die_with, args=(launcher,), daemon=True).start()
    os.environ.update(environment)
    _log_into(root / key / "log.txt")
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank} of {world}: process {os.getpid()} begins", flush=True)

    from launchers.run_stage import Group, run_stage
    from results.store import Store
    from sweeps.errors import StageFailedError

    try:
        run_stage(Store(root), key, Group(rank, world))
    except StageFailedError as error:
        print(f"failed: {error}", flush=True)
        sys.exit(1)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}: done", flush=True)


def _die_with(launcher: Connection) -> None:
    try:
        launcher.recv_bytes()
    except (EOFError, OSError):
        os._exit(4)


def _log_into(path: Path) -> None:
    """Send standard output and error, also of libraries written in C, to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
