"""What an attempt of one process does between two pieces of its work."""

import time
from collections.abc import Callable

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.signals import AttemptStopped
from retain.results.store.state import Progress

REPORT_EVERY_S = 1.0


class Pause:
    """Called between two pieces of work: saves what is computed, reports progress, and stops the attempt if it is asked to.

    begins: the tokens at which the attempt begins. total: those of the whole run; 0 if unknown, then no speed is reported.
    """

    def __init__(self, context: AttemptContext, begins: int, total: int = 0) -> None:
        self.context, self.begins, self.total = context, begins, total
        self.save_every_s = 60 * context.spec["execution"]["save_minutes"]
        self.saved = begins
        self.began = self.saved_at = self.reported_at = time.monotonic()

    def __call__(self, done: int, save: Callable[[], None]) -> None:
        """Save every `execution.save_minutes`, and if a stop signal has come, which raises AttemptStopped.

        done: the tokens of the run that are done. save: writes what is computed from them, by replacing a file.
        """
        now, stopped = time.monotonic(), self.context.stop.signal
        if done > self.saved and (stopped or now - self.saved_at > self.save_every_s) and self.context.may_write():
            save()
            self.saved, self.saved_at = done, time.monotonic()
        if stopped or done == self.total or now - self.reported_at > REPORT_EVERY_S:
            speed = (done - self.begins) / (now - self.began) if self.total else 0.0
            self.context.report(Progress(done, self.total, tokens_per_second=speed))
            self.reported_at = now
        if stopped:
            raise AttemptStopped(stopped)
