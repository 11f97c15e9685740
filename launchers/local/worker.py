"""The process that the local launcher starts for each rank: it logs into the run, and ends when its launcher ends."""

import contextlib
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from retain.launchers.stage.log import FAILED, STOP_GRACE_S, STOPPED, log_into, log_line
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest


def work(
    root: Path,
    key: str,
    ranks: Ranks,
    environment: Mapping[str, str],
    launcher: Connection,
    pack: int,
    runs: int,
) -> None:
    """Make an attempt at a run while the pipe `launcher` is open; exit with the attempt's code.

    pack: the most runs. With several, report "done" after each, and continue with the run that the launcher then names, if any.
    runs: how many that will be, as far as is known.
    """
    stop = StopRequest()
    stop.install()
    named: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(launcher, named), daemon=True).start()
    os.environ.update(environment)
    following, code = key, 0
    while following:
        log_into(root / following / "log.txt")
        # Imported here, so that the log says why an import fails.
        from retain.launchers.stage.attempt import attempt_code
        from retain.results.store.runs import Store

        log_line(f"rank {ranks.rank} of {ranks.world}: process {os.getpid()} begins")
        code, ending = attempt_code(Store(root), following, ranks, stop, runs)
        log_line(f"rank {ranks.rank}: {ending}")
        pack -= 1
        following = _next_run(launcher, named, stop) if code == 0 and pack else ""
    # After a signal between two runs: the launcher may have named the second one already.
    code = STOPPED if code == 0 and stop.signal is not None else code
    # The libraries' exit handlers may wait for a rank that is gone.
    os._exit(code)


def _next_run(launcher: Connection, named: "queue.SimpleQueue[str]", stop: StopRequest) -> str:
    """The key of the next run of the pack; empty if there is none."""
    gc.collect()
    with contextlib.suppress(OSError):
        launcher.send_bytes(b"done")
    while stop.signal is None or stop.forget_cancel():  # the next run of the pack is not cancelled
        with contextlib.suppress(queue.Empty):
            return named.get(timeout=0.1)
    return ""


def _listen(launcher: Connection, named: "queue.SimpleQueue[str]") -> None:
    """Put the keys that the launcher sends into `named`. Once the launcher is gone, end this process.

    A TERM signal lets the attempt save a checkpoint; if that takes too long, the process exits.
    """
    with contextlib.suppress(EOFError, OSError):
        while True:
            named.put(launcher.recv_bytes().decode())
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_GRACE_S)
    os._exit(FAILED)
