"""Stop signals: a handler only sets a flag, and attempts poll it between steps."""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""TERM: schedulers and service managers; INT: Ctrl-C; USR2: submitit's warning before a preemption or time limit; HUP: the
terminal was closed."""
CANCEL_SIGNAL = signal.SIGUSR1
"""Sent by `retain cancel`: stop the current run, and continue with the other runs of the job's pack."""
ALL_SIGNALS = (*STOP_SIGNALS, CANCEL_SIGNAL)


class AttemptStopped(Exception):
    """A stop signal ended an attempt, which has saved everything that it needs to resume."""


class StopRequest:
    """The first stop signal that this process received. A stop signal overrides the cancel signal."""

    def __init__(self) -> None:
        self.signal: str | None = None
        """The name of the signal; None as long as there was none."""

    def cancel(self) -> None:
        """Stop the current run, as the cancel signal does."""
        self.signal = self.signal or CANCEL_SIGNAL.name

    def forget_cancel(self) -> bool:
        """Forget the cancel signal once the cancelled run has stopped. Returns whether it was the signal received."""
        if self.signal != CANCEL_SIGNAL.name:
            return False
        self.signal = None
        return True

    def install(self) -> None:
        """Handle the stop signals. Call it again after a library has installed its own handlers."""
        for number in ALL_SIGNALS:
            if not is_nohup(number):
                signal.signal(number, self._note)
        # The parent process may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal in (None, CANCEL_SIGNAL.name):
            self.signal = signal.Signals(number).name


def is_nohup(number: int) -> bool:
    """Whether a signal is HUP and ignored, so that this process outlives its terminal."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


@contextlib.contextmanager
def block_stop_signals(numbers: Iterable[int] = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)) -> Iterator[None]:
    """Shield processes that this thread starts in the block from signals that are sent to every process of a job or terminal.

    They are those of SLURM, and HUP of a terminal that was closed. `StopRequest.install` lets a process hear them again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
