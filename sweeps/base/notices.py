"""Lines on standard error about what a user should know while something goes on: what is left out, what is waited for."""

import sys

from retain.sweeps.base.redaction import redacted


def notice(sentence: str) -> None:
    """Print one line on standard error, without the passwords of URLs."""
    print(f"retain: {redacted(sentence)}", file=sys.stderr, flush=True)


class Waiting:
    """Prints what a command waits for, once for each new reason."""

    def __init__(self, what: str) -> None:
        self.what, self.said = what, ""

    def say(self, reason: str) -> None:
        if reason != self.said:
            self.said = reason
            notice(f"{self.what}: {reason}")
