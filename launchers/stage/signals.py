"""Stop signals: a handler only sets a flag; the training loop looks at it between steps."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""TERM: schedulers and service managers; INT: Ctrl-C; USR2: submitit's warning before a preemption or time limit."""
CANCEL_SIGNAL = signal.SIGUSR1
"""From `retain cancel`: the run that is trained is to stop, and its job to go on with the others of its pack."""
HEARD = (*STOP_SIGNALS, CANCEL_SIGNAL)


class StopRequest:
    """The first stop signal that this process received, None so far; one that only cancels a run gives way to any other."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def forget_cancel(self) -> bool:
        """The cancelled run has stopped; whatever else has asked for a stop still does. Whether it was so."""
        if self.signal != CANCEL_SIGNAL.name:
            return False
        self.signal = None
        return True

    def install(self) -> None:
        """Take over the stop signals; to be repeated after a library has put its own handlers in place."""
        for number in HEARD:
            signal.signal(number, self._note)
        # Whoever started this process may have been told not to hear them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal in (None, CANCEL_SIGNAL.name):
            self.signal = signal.Signals(number).name
