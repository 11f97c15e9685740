"""Say why a URL cannot be read, and what helps.

Every verb imports this file, so it imports the modules of networks only where they are needed.
"""

import errno
import os
import socket
from collections.abc import Iterator
from time import time
from typing import TYPE_CHECKING

from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.base.redaction import redacted

if TYPE_CHECKING:
    import ssl

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Answers that a server may give now and not a little later."""
BROKEN = (
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE),
    *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
)
PROXY_LOGIN = 407
EXPIRED, OTHER_NAMES = 10, (62, 64)
"""OpenSSL's codes for a certificate that has expired, and for one of another host or address."""
PUBLIC = {"s3": "FSSPEC_S3_ANON=true", "gs": "FSSPEC_GS_TOKEN=anon", "gcs": "FSSPEC_GCS_TOKEN=anon"}
"""The variable that reads a public bucket without credentials."""
LATER = "try again later, or use a local copy"
NETWORK = "check the URL, the network and its proxy (HTTPS_PROXY, HTTP_PROXY), or use a local copy"


class ServerUnreachableError(MissingResourceError):
    """The server of a URL could not be asked, or had no time to answer: it may have the file as it was."""


def unreachable(url: str, error: BaseException) -> RetainError:
    """The error for a URL that cannot be read: the cause and a cure. An error of Retain is returned as it is.

    It is a ServerUnreachableError unless the server has said that there is no such file, or that it may not be read.
    """
    if isinstance(error, RetainError):
        return error
    told = _refusal(url, error)
    return told if any(map(_is_answer, causes(error))) else ServerUnreachableError(str(told))


def _is_answer(error: BaseException) -> bool:
    """Whether an error is what a server says of a file; not that it is busy, and not what a proxy says."""
    if type(error).__name__ == "ClientHttpProxyError":
        return False
    status = status_of(error) or getattr(getattr(error, "response", None), "status_code", None)  # of huggingface_hub
    if isinstance(status, int):
        return status not in (*BUSY, PROXY_LOGIN)
    return isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ == "TooManyRedirects"


def _refusal(url: str, error: BaseException) -> MissingResourceError:
    """The error for a URL, with the first known cause."""
    for cause in causes(error):
        if told := _told(cause):
            return refused(url, *told)
    kind = url.partition(":")[0].lower()
    public = f" (for a public bucket, set {PUBLIC[kind]})" if kind in PUBLIC else ""
    reason = f"{type(error).__name__}: {' '.join(redacted(str(error)).split())[:200]}"
    return refused(url, reason, f"check the URL, the network and your credentials{public}, or use a local copy")


def refused(url: str, reason: str, cure: str) -> MissingResourceError:
    """The error that says why a URL is not read, and what to do."""
    return MissingResourceError(f"files: {url} cannot be read ({reason}); {cure}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and the errors that it comes from; aiohttp keeps those of the connection in fields of its own."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while isinstance(found, BaseException) and found not in seen:
        yield found
        seen.append(found)
        inner = getattr(found, "certificate_error", None) or getattr(found, "os_error", None)
        found = inner or found.__cause__


def status_of(error: BaseException) -> int | None:
    """The status that a server of http answered with, if that is the error."""
    status = getattr(error, "status", None)
    return status if isinstance(status, int) and status >= 400 else None


def retry_after_s(error: BaseException) -> float:
    """The seconds that a busy server asks to wait; 0 if it does not say."""
    from email.utils import parsedate_to_datetime

    for cause in causes(error):
        said = (getattr(cause, "headers", None) or {}).get("Retry-After", "").strip()
        if said.isdecimal():
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time())
        except ValueError:
            continue
    return 0.0


def _told(error: BaseException) -> tuple[str, str] | None:
    """The reason and the cure for an error of a connection; None for any other."""
    import ssl

    # Those of aiohttp have the same classes, and none of their fields.
    if isinstance(error, ssl.SSLCertVerificationError):
        return _told_of_certificate(error) if hasattr(error, "verify_code") else None
    if isinstance(error, ssl.SSLError) and (reason := getattr(error, "reason", None)):
        words = reason.replace("_", " ").lower()
        return f"no encrypted connection: {words}", "check the port, or write http:// if the server has no TLS"
    if (status := status_of(error)) is not None:
        return _told_of_answer(status, str(getattr(error, "message", "")), retry_after_s(error))
    if type(error).__name__ == "TooManyRedirects":
        return "the server redirects in a loop", "check the URL, or use a local copy"
    if isinstance(error, TimeoutError):
        return "the server does not answer in time", NETWORK
    if isinstance(error, socket.gaierror):
        return f"no connection to the server: {error.strerror}", NETWORK
    if isinstance(error, OSError) and error.errno in BROKEN:
        return f"no connection to the server: {os.strerror(error.errno)}", NETWORK
    if isinstance(error, ConnectionError) and error.errno is None:
        return "the server closed the connection", "check the port and the URL, or use a local copy"
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return "it is not there", "correct the URL"
    return None


def _told_of_certificate(error: "ssl.SSLCertVerificationError") -> tuple[str, str]:
    reason = f"the server's certificate is not valid: {error.verify_message.strip().rstrip('.')}"
    if error.verify_code == EXPIRED:
        return reason, "check this machine's clock, ask the server's owner for a new one, or use a local copy"
    if error.verify_code in OTHER_NAMES:
        return reason, "correct the host in the URL, or use a local copy"
    return reason, (
        "if your own authority or a proxy signs it, set SSL_CERT_FILE to a PEM file with all authorities to trust"
    )


def _told_of_answer(status: int, message: str, wait_s: float) -> tuple[str, str]:
    reason = f"the server answers {status} {' '.join(redacted(message).split())[:100]}".rstrip()
    if status in (401, 403):
        return reason, "check your credentials (in ~/.netrc) or the time limit of a signed URL, or use a local copy"
    if status in (404, 410):
        return reason, "correct the URL"
    if status in BUSY:
        return f"{reason}, and asks to wait {wait_s:.0f} s" if wait_s else reason, LATER
    return reason, "check the URL, or use a local copy"
