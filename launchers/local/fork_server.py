"""The server from which worker processes are forked, once it has imported what they all need."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess

from retain.launchers.stage.environment import OFFLINE
from retain.launchers.stage.signals import block_stop_signals
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.surroundings import library_imports, temporary_folder

WORKER = "retain.launchers.local.worker"


def fork_server(modules: list[str]) -> ForkServerContext:
    """Fork processes from a server that has imported these modules, so that each is imported only once.

    A running server that lacks one of them is replaced; its processes must have ended. Otherwise each new process would import
    the missing modules itself: for example torch, if the server was started to prepare data. Modules that this process has
    asked multiprocessing for before are imported too.
    """
    context = multiprocessing.get_context("forkserver")
    server, wanted = forkserver._forkserver, {WORKER, *modules}
    asked = set(server._preload_modules) - {"__main__"}  # type: ignore[attr-defined]
    if (pid := server._forkserver_pid) is not None:  # type: ignore[attr-defined]
        if wanted <= asked:
            return context
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        server._stop()  # type: ignore[attr-defined]
    context.set_forkserver_preload(sorted(wanted | asked))
    return context


def start(process: ForkServerProcess) -> None:
    """Start a process, and first the server if need be. Raises MissingResourceError if the server does not run."""
    # The server must survive signals that stop its processes: it tells how they ended. Starting multiprocessing's tracker
    # would let this process hear TERM again.
    with block_stop_signals(), library_imports():
        resource_tracker.ensure_running()
    with block_stop_signals(), library_imports(OFFLINE), _short_temporary_folder(), _unimportable_main():
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise MissingResourceError(
                f"worker processes cannot be started ({type(error).__name__}: {error}); the messages above say why, or "
                "retain doctor does"
            ) from error


@contextlib.contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Let multiprocessing make its sockets where their paths are short enough."""
    before, tempfile.tempdir = tempfile.tempdir, temporary_folder()
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def _unimportable_main() -> Iterator[None]:
    """Hide the caller's script from multiprocessing, which would run it again in each new process; no worker needs it."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, object] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)
