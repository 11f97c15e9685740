"""A thread that sends the heartbeats of a lease while the process works."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from retain.results.store.lease import Lease, why_lost

BEAT_EVERY_S = 15.0


@contextlib.contextmanager
def heartbeat(lease: Lease | None, poll: Callable[[], None]) -> Iterator[None]:
    """Send heartbeats during the block; end the process if it no longer holds the lease. None: do nothing.

    poll: called after each heartbeat.
    """
    if lease is None:
        yield
        return
    stop = threading.Event()
    # Meanwhile the process may be in another folder: a search is, while it starts Ray.
    lease = replace(lease, path=lease.path.absolute())

    def beat() -> None:
        while not stop.wait(BEAT_EVERY_S):
            try:
                if not lease.held():
                    print(f"{why_lost(lease.path)}; this process stops", flush=True)
                    os._exit(3)
                lease.beat()
                poll()
            except OSError as error:  # the file system answers late; the next heartbeat may succeed
                print(f"the heartbeat could not be written: {error}", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
