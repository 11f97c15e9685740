"""Read a file at a URL from its first byte to its last: all of it, or an error.

A connection of http that breaks is opened again where it broke, if the server still has the same content by its etag or time.
The file systems of object stores do that by themselves.
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from retain.datamodules.corpora.reading.unreachable import (
    BUSY,
    LATER,
    causes,
    refused,
    retry_after_s,
    status_of,
    unreachable,
)
from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.base.notices import notice
from retain.sweeps.base.units import format_bytes

T = TypeVar("T")
FIRST_WAITS_S = (1.0, 2.0, 4.0)
"""Seconds before each further attempt to learn of a file from a busy server."""
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each further attempt to read on, until bytes arrive."""
LONGEST_WAIT_S = 60.0
"""The longest time that a busy server may ask to wait; if it asks for more, the user is told."""
ENCODINGS = ("", "identity", "gzip", "x-gzip", "zstd")
"""How content may be encoded: the compressions are those that files may have too."""


class SizedStream(io.RawIOBase):
    """The bytes of a file of a known size. Raises MissingResourceError if there are fewer."""

    def __init__(self, url: str, size: int, stream: Any) -> None:
        self.url, self.size, self.stream, self.position = url, size, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except Exception as error:  # each file system has classes of its own
            raise unreachable(self.url, error) from error
        if not data and self.position < self.size:
            raise refused(self.url, f"it ends after {self.position} of {self.size} bytes", "try again")
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


@dataclass(frozen=True)
class _Answer:
    """What a server says of the bytes that it sends."""

    begin: int
    """The place of the first byte in the file."""
    total: int | None
    """Bytes of the whole file; None if they are sent in chunks: the last one is marked as such."""
    version: str
    """A strong etag, or the time of modification; empty if the server gives neither."""
    encoding: str

    def continues(self, first: "_Answer") -> bool:
        """Whether it is of the same content as the first answer."""
        same_size = None in (self.total, first.total) or self.total == first.total
        return same_size and (self.version, self.encoding) == (first.version, first.encoding)


class HttpStream(io.RawIOBase):
    """The bytes that a server of http sends for a URL. Raises MissingResourceError if they cannot be read to the end."""

    def __init__(self, url: str, size: int | None, request: Callable[[dict[str, str]], Any]) -> None:
        """size: in bytes, if known. request: begins to read with these headers, as fsspec's `HTTPStreamFile`."""
        self.url, self.size, self.request = url, size, request
        self.position, self.failures, self.ended = 0, 0, False
        self.at = 0
        """The place of the next byte of the connection; less than `position` if the server sends the beginning again."""
        self.stream: Any = None
        self.first: _Answer | None = None

    def readable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:
        """How the bytes are encoded, although they were asked for as they are; empty if they are not."""
        while self.first is None:
            self._tried(self._connect)
        return self.first.encoding.removeprefix("x-").replace("identity", "")

    def readinto(self, buffer: Any) -> int:
        if self.ended:
            return 0
        while (data := self._tried(lambda: self._read(len(buffer)))) is None:
            pass
        buffer[: len(data)] = data
        self.position += len(data)
        self.failures = 0
        self.ended = not data
        return len(data)

    def close(self) -> None:
        self._disconnect()
        super().close()

    def _tried(self, action: Callable[[], T]) -> T | None:
        """What an action returns; None if it failed and may be tried again, which was waited for."""
        try:
            return action()
        except RetainError:
            raise
        except Exception as error:
            self._disconnect()
            begun = self.position > 0
            if self.failures == len(WAITS_S) or not is_passing(error, begun) or (begun and not self._may_go_on):
                raise self._broken(error) from error
            if begun and not self.failures:
                notice(f"{self.url}: the connection broke after {format_bytes(self.position)}; resuming there")
            time.sleep(max(WAITS_S[self.failures], retry_after_s(error)))
            self.failures += 1
            return None

    @property
    def _may_go_on(self) -> bool:
        """Whether a later answer can be told to be of the same content."""
        return self.first is not None and bool(self.first.version)

    def _broken(self, error: Exception) -> Exception:
        """The error for a connection that is not opened again."""
        if self.first is None or not is_passing(error, begun=True) or any(map(status_of, causes(error))):
            return unreachable(self.url, error)
        if self.position and not self._may_go_on:
            cure = (
                "use a local copy: the server gives no etag and no time, so resuming could mix two versions of the file"
            )
            return refused(self.url, f"the connection broke after {self.position} bytes", cure)
        return refused(self.url, f"the connection broke after {self.position} bytes, repeatedly", LATER)

    def _read(self, most: int) -> bytes | None:
        """Up to so many bytes; none at the end of the file; None if the connection sent only what was read before."""
        if self.stream is None:
            self._connect()
        assert self.first is not None
        data: bytes = self.stream.read(most)
        begin, self.at = self.at, self.at + len(data)
        if not data and self.first.total is not None and self.at != self.first.total:
            raise ConnectionResetError(f"{self.at} of {self.first.total} bytes")
        new = data[max(0, self.position - begin) :]
        return None if data and not new else new

    def _connect(self) -> None:
        rest = {"Range": f"bytes={self.position}-"} if self.position else {}
        self.stream = self.request({"Accept-Encoding": "identity", **rest})
        answer = self._answer(self.stream.r)
        if self.first is None:
            self.first = answer
        if not answer.continues(self.first) or answer.begin > self.position:
            raise MissingResourceError(
                f"files: {self.url}: the file changed while it was read; try again once nothing writes to it"
            )
        self.at = answer.begin

    def _disconnect(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def _answer(self, response: Any) -> _Answer:
        """What a response says of its bytes. Raises MissingResourceError if they are not the file, or may be less."""
        headers = response.headers
        if headers.get("Content-Type", "").lower().startswith("text/html"):
            cure = "log in with ~/.netrc, or take the URL of the raw file"
            raise refused(self.url, "the server sends a web page, for instance to log in, and not the file", cure)
        encoding = headers.get("Content-Encoding", "").lower()
        if encoding not in ENCODINGS:
            raise refused(self.url, f"the server sends it with Content-Encoding: {encoding}", "use a local copy")
        begin, total = 0, int(headers["Content-Length"]) if "Content-Length" in headers else None
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if not found:
                raise refused(self.url, "the server does not say which part of the file it sends", "use a local copy")
            begin, total = int(found[1]), int(found[2])
        elif total is None and "chunked" not in headers.get("Transfer-Encoding", "").lower():
            total = self.size
            if not total or encoding not in ENCODINGS[:2]:
                reason = "the server does not say where it ends, so a broken connection would look like the end"
                raise refused(self.url, reason, "use a local copy")
        tag = headers.get("ETag", "")
        return _Answer(begin, total, headers.get("Last-Modified", "") if tag[:2] in ("", "W/") else tag, encoding)


def patiently(action: Callable[[], T]) -> T:
    """Return what an action returns, which asks a server about a file; repeat it a few times while the server is busy."""
    for wait in FIRST_WAITS_S:
        try:
            return action()
        except Exception as error:
            if not is_passing(error, begun=False):
                raise
            time.sleep(max(wait, retry_after_s(error)))
    return action()


def is_passing(error: BaseException, begun: bool) -> bool:
    """Whether an error of http may be gone a little later. begun: whether the server has sent bytes of the file before."""
    import aiohttp

    if retry_after_s(error) > LONGEST_WAIT_S:
        return False
    for cause in causes(error):
        if (status := status_of(cause)) is not None:
            return status in BUSY
        if isinstance(cause, aiohttp.ClientSSLError):
            return False
        if isinstance(cause, aiohttp.ClientConnectorError | TimeoutError):
            return begun
        if isinstance(cause, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
            return True
        if isinstance(cause, ConnectionError):
            return True
    return False
