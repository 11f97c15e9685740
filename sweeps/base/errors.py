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


class NoRoomError(MissingResourceError):
    """A disk that what is to be written does not fit on."""


class StageFailedError(RetainError):
    """A stage that could not be trained; `failure`: the class of the cause, where who raises it knows."""

    exit_code = 1

    def __init__(self, message: str, failure: str | None = None) -> None:
        super().__init__(message)
        self.failure = failure
