"""`retain logs`: what a run has logged, over all its attempts."""

import sys
import time

from retain.results.store.runs import Run
from retain.results.store.status import current_state
from retain.sweeps.base.errors import StudyError

POLL_S = 0.3


def follow_log(run: Run, follow: bool) -> None:
    """Print a run's log; with `follow`, go on until the run ends. Raises StudyError where nothing was logged yet."""
    if not run.log.exists():
        raise StudyError(f"{run.key}: nothing is logged yet, the run is {run.state().state}; retain status says more")
    with run.log.open(encoding="utf-8", errors="replace") as log:
        while True:
            working = follow and current_state(run).state in ("queued", "running")
            while block := log.read(1 << 16):
                sys.stdout.write(block)
            sys.stdout.flush()
            if not working:
                return
            time.sleep(POLL_S)
