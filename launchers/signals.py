"""Stop signals: a handler only sets a flag; the training loop looks at it between steps."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""TERM: schedulers and service managers; INT: Ctrl-C; USR2: submitit's warning before a preemption or time limit."""


class StopRequest:
    """The first stop signal that this process received, None so far."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def install(self) -> None:
        """Take over the stop signals; to be repeated after a library has put its own handlers in place."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
