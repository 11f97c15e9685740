"""A lease kept alive beside the work that it is for."""

import contextlib
import os
import threading
from collections.abc import Iterator

from retain.results.store.lease import Lease

BEAT_EVERY_S = 15.0


@contextlib.contextmanager
def heartbeat(lease: Lease | None) -> Iterator[None]:
    """Keep a lease alive from a thread; end the process once somebody else has taken it over. None: nothing to keep."""
    if lease is None:
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_EVERY_S):
            try:
                if not lease.held():
                    print(f"another process has taken {lease.path.parent} over; this one stops", flush=True)
                    os._exit(3)
                lease.beat()
            except OSError as error:  # a file system that answers late: the next beat may come through
                print(f"the heartbeat could not be written: {error}", flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
