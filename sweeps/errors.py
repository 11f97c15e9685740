"""The errors that a user can cure; the command line prints them as one sentence and exits with their code."""


class RetainError(Exception):
    """Anything Retain refuses to do; the message names the file, the field or the run, and the cure."""

    exit_code = 2


class StudyError(RetainError):
    """A wrong study, override or argument."""

    exit_code = 2


class MissingResourceError(RetainError):
    """An environment that lacks something: disk, a corpus, a package, permission."""

    exit_code = 3


class StageFailedError(RetainError):
    """A stage that could not be trained; `no_room`: because the disk is full."""

    exit_code = 1

    def __init__(self, message: str, no_room: bool = False) -> None:
        super().__init__(message)
        self.no_room = no_room
