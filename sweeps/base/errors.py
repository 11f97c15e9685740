"""Errors that a user can fix. The command line prints the message as one sentence and exits with the error's code."""

import errno

from retain.sweeps.base.redaction import redacted


class RetainError(Exception):
    """The base of all errors of Retain. The message says what is wrong, in which file, field or run, and how to fix it.

    The passwords of URLs in the message are hidden, so that it can be printed, logged and stored.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class StudyError(RetainError):
    """A study, override or argument is invalid."""

    exit_code = 2


class MissingResourceError(RetainError):
    """The environment lacks something: disk space, a corpus, a package or a permission."""

    exit_code = 3


class NoRoomError(MissingResourceError):
    """The disk has too little free space."""


class DamageError(MissingResourceError):
    """A file of the store is damaged, cannot be read, or is not a file."""


class NewerFormatError(DamageError):
    """A file of the store was written by a newer version of Retain."""


class StageFailedError(RetainError):
    """A stage could not be trained.

    failure: the class of the cause, if it is known where the error is raised.
    """

    exit_code = 1

    def __init__(self, message: str, failure: str | None = None) -> None:
        super().__init__(message)
        self.failure = failure


MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_FAULTS = ("EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH", "ENOTCONN", "ESHUTDOWN")
FAULTS = tuple(number for number, name in errno.errorcode.items() if name in _OF_FAULTS)
"""Errors of disks, file servers and networks, as far as this system has them: a file that meets one may be whole."""


def os_cure(error: OSError, otherwise: str) -> str:
    """What to do about an error of the operating system, as a clause; `otherwise` is possible in any case."""
    if error.errno in MAY_NOT:
        return f"ask its owner for access, or {otherwise}"
    return f"free space, or {otherwise}" if error.errno in NO_ROOM else otherwise


def os_reason(error: OSError) -> str:
    """Why the operating system refused something; some of its errors have no text of their own."""
    return error.strerror or redacted(" ".join(str(error).split()))[:200] or type(error).__name__
