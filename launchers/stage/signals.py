"""Stop signals: a handler only sets a flag, and attempts poll it between steps."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""TERM: schedulers and service managers; INT: Ctrl-C; USR2: submitit's warning before a preemption or time limit."""
CANCEL_SIGNAL = signal.SIGUSR1
"""Sent by `retain cancel`: the current run is to stop, and its job to continue with the other runs of its pack."""
ALL_SIGNALS = (*STOP_SIGNALS, CANCEL_SIGNAL)


class AttemptStopped(Exception):
    """A stop signal ended an attempt after everything it needs to resume was saved."""


class StopRequest:
    """The first stop signal that this process received; None so far. Any stop signal overrides the cancel signal."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def forget_cancel(self) -> bool:
        """Drop the cancel signal, as the cancelled run has stopped. Returns whether that was the signal received."""
        if self.signal != CANCEL_SIGNAL.name:
            return False
        self.signal = None
        return True

    def install(self) -> None:
        """Handle the stop signals. To be repeated after a library has installed its own handlers."""
        for number in ALL_SIGNALS:
            signal.signal(number, self._note)
        # The process that started this one may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal in (None, CANCEL_SIGNAL.name):
            self.signal = signal.Signals(number).name


@contextlib.contextmanager
def block_stop_signals() -> Iterator[None]:
    """Processes that this thread starts meanwhile do not receive the signals that SLURM sends to every process of a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
