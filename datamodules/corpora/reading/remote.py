"""Files at URLs, such as s3://, gs://, hf:// and https://, through fsspec."""

import contextlib
import functools
import gzip
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from retain.datamodules.corpora.reading.remote_streams import HttpStream, SizedStream, patiently
from retain.datamodules.corpora.reading.unreachable import ServerUnreachableError, refused, unreachable
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.base.notices import notice
from retain.sweeps.base.redaction import redacted

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""The extra that installs what reads a kind of URL. What reads http, https and hf comes with `datasets`."""
HTTP = ("http", "https")
VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "mtime", "created"),
)
"""The fields by which file systems say that a file has changed, the surest first."""
STALLED_S = 300.0
"""Seconds without data after which a server counts as gone. The library's limit is for a whole file, however long."""
ASKED_S = 30.0
"""The same while a server is asked what it has: to connect, and to answer. A file is asked for twice, by HEAD and by GET."""
SAID_S = 5.0
"""Seconds after which a user learns what is waited for."""

WAITED_S, SILENT_S = 1.0, 60.0
"""Seconds after which an attempt to ask counts as long, and for which a server is not asked again after one."""
_SILENT: dict[str, tuple[float, str, str]] = {}
"""The servers that were asked in vain: when, for which URL, and what was said then."""


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL."""

    url: str
    size: int | None
    """In bytes; None if the server does not say."""
    version: str
    """What changes with the content: an etag or a time of modification; empty if the server does not say."""
    system: Any = field(compare=False, repr=False)
    """The file system of fsspec."""
    place: str
    """The path in this file system."""

    @property
    def path(self) -> PurePosixPath:
        """The path of the URL, for names and suffixes."""
        return PurePosixPath(unquote(urlsplit(self.url).path) if self.is_http else self.place)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def suffixes(self) -> list[str]:
        return self.path.suffixes

    def __str__(self) -> str:
        return self.url

    @property
    def is_http(self) -> bool:
        return url_kind(self.url) in HTTP

    def open(self) -> BinaryIO:
        """Open the file for reading from its beginning to its end; see `remote_streams`."""
        if self.is_http:
            return cast(BinaryIO, self._http_stream())
        stream = self.system.open(self.place, "rb")
        return cast(BinaryIO, stream if self.size is None else SizedStream(self.url, self.size, stream))

    def _http_stream(self) -> HttpStream:
        # As one stream, as not every server sends a part of a file, and as its bytes are: they tell how they are compressed.
        options = {"block_size": 0, "size": self.size, "auto_decompress": False}
        return HttpStream(
            self.url, self.size, lambda headers: self.system.open(self.place, "rb", headers=headers, **options)
        )

    @contextlib.contextmanager
    def seekable(self) -> Iterator[BinaryIO]:
        """Open the file for reading in any order; a file of http is copied to a temporary file."""
        if not self.is_http:
            with self.system.open(self.place, "rb") as stream:
                yield stream
            return
        with self._http_stream() as stream, tempfile.TemporaryFile() as copy:
            if stream.encoding not in ("", "gzip"):
                raise refused(self.url, f"the server sends it with {stream.encoding}", "use a local copy")
            shutil.copyfileobj(gzip.GzipFile(fileobj=stream) if stream.encoding else stream, copy)
            copy.seek(0)
            yield cast(BinaryIO, copy)


def url_kind(pattern: str) -> str | None:
    """Return the kind of a URL, such as s3, in small letters; None for a path."""
    match = URL.match(pattern)
    return match[1].lower() if match else None


def find_remote(pattern: str, hidden: list[str]) -> list[RemoteFile]:
    """Return the files at a URL, below a folder's URL, or that match a URL with a glob pattern, sorted by URL.

    hidden: gets the hidden files that are left out, as `find_files` leaves them out. Raises StudyError if nothing reads this
    kind of URL, MissingResourceError if there is no file, ServerUnreachableError if the server does not answer. A server that
    has kept us waiting for that is not asked again for a while, as a study asks for each of its corpora several times.
    """
    server, begun = "/".join(pattern.split("/")[:3]), time.monotonic()
    if server in _SILENT and begun - _SILENT[server][0] < SILENT_S:
        _, other, said = _SILENT[server]
        raise ServerUnreachableError(said.replace(redacted(other), redacted(pattern)))
    try:
        with _said_if_long(redacted(server)):
            return _found(pattern, hidden)
    except ServerUnreachableError as error:
        if time.monotonic() - begun > WAITED_S:
            _SILENT[server] = (time.monotonic(), pattern, str(error))
        raise


@contextlib.contextmanager
def _said_if_long(server: str) -> Iterator[None]:
    """Say that a server is waited for, if the block takes long."""
    said = f"{server} has not answered for {SAID_S:g} s; it counts as unreachable after {ASKED_S:g} s, tried twice"
    timer = threading.Timer(SAID_S, notice, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _found(pattern: str, hidden: list[str]) -> list[RemoteFile]:
    """`find_remote`, by asking the server."""
    system, place = _file_system(pattern)
    try:
        system.invalidate_cache()
        found = patiently(lambda: _matching(system, place, url_kind(pattern) in HTTP))
        files = [remote_file(system, path, info) for path, info in sorted(found.items())]
        if url_kind(pattern) in HTTP:
            reading = _http_file_system(STALLED_S)
            files = [replace(file, system=reading) for file in files]
    except FileNotFoundError as error:
        # The library says it of every answer of a server, and of no answer.
        if (cause := error.__cause__) is not None and getattr(cause, "status", None) not in (404, 410):
            raise unreachable(pattern, cause) from error
        files = []
    except RetainError:
        raise
    except Exception as error:  # each file system has classes of its own
        raise unreachable(pattern, error) from error
    shown = [file for file in files if not _is_hidden(file.place, place)]
    hidden += [file.name for file in files if file not in shown]
    if not shown:
        raise MissingResourceError(f"files: no file matches {pattern}; correct the URL")
    return shown


def _file_system(pattern: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import fsspec

    kind = url_kind(pattern)
    assert kind is not None
    if "::" in pattern:
        raise StudyError(f"files: {pattern} is a chain of URLs; unpack the archive, and name its files")
    if kind in HTTP:
        return _http_file_system(ASKED_S), pattern
    if kind in ("gs", "gcs") and "GCSFS_DEBUG" not in os.environ:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of each error that it raises
    try:
        system, place = fsspec.core.url_to_fs(pattern)
    except ImportError as error:
        if kind in EXTRAS:
            cure = f"run `pip install 'retain-lm[{EXTRAS[kind]}]'`"
        else:
            cure = f"install it ({' '.join(str(error).split())})"
        raise MissingResourceError(f"files: {pattern} needs a package that is not installed; {cure}") from error
    except RetainError:
        raise
    except Exception as error:
        if "Protocol not known" in str(error):
            raise StudyError(
                f"files: {pattern}: nothing reads {kind}://; name files by a path, or by s3://, gs://, hf:// or https://"
            ) from None
        raise unreachable(pattern, error) from error
    return system, str(place)


def _http_file_system(patience_s: float) -> Any:
    """A file system of http whose servers may be silent for so many seconds."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=ASKED_S, sock_read=patience_s)
    return _http_system()(client_kwargs={"timeout": timeout, "trust_env": True})


class _ListingError(Exception):
    """A folder of http could not be listed; the cause says why."""


@functools.cache
def _http_system() -> Any:
    """The class of file systems of http, which lists a folder whole or not at all."""
    from fsspec.implementations.http import HTTPFileSystem

    class Whole(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
        async def _ls(self, url: str, detail: bool = True, **options: Any) -> Any:
            try:
                return await super()._ls(url, detail, **options)
            except FileNotFoundError:
                raise
            except OSError as error:
                # Of the connection; `find` and `glob` would take the folder for an empty one.
                raise _ListingError(f"{type(error).__name__}: {error}") from error

    return Whole


def _matching(system: Any, place: str, is_http: bool) -> dict[str, Any]:
    """The files of a pattern, by path, with what the file system says of each."""
    if re.search(r"[*\[]" if is_http else r"[*?\[]", place):
        matches: dict[str, Any] = system.glob(place, detail=True)
    elif is_http and place.endswith("/"):
        matches = system.find(place, detail=True)
    else:
        matches = {place: _info(system, place)}
    found: dict[str, Any] = {}
    for path, info in matches.items():
        if info.get("type") == "directory":
            found |= system.find(path, detail=True)
        else:
            found[path] = info
    return {path: info for path, info in found.items() if info.get("type") != "directory"}


def remote_file(system: Any, path: str, info: dict[str, Any]) -> RemoteFile:
    """A file by what its file system says of it. Raises MissingResourceError if it could not be read to its end."""
    if info.get("size") is None or not any(info.get(name) for name in VERSIONS):
        info = patiently(lambda: _info(system, path))  # listings of http say neither
    if info.get("contentEncoding") == "gzip":
        # Its size is that of the compressed bytes, and gcsfs stops after as many of the decompressed ones.
        raise refused(
            str(system.unstrip_protocol(path)),
            "it is stored with Content-Encoding: gzip, so that Google decompresses it on the way",
            "run `gcloud storage objects update --clear-content-encoding` on it, after which it is read compressed",
        )
    version = next((str(info[name]) for name in VERSIONS if info.get(name)), "")
    return RemoteFile(str(system.unstrip_protocol(path)), info.get("size"), version, system, path)


def _info(system: Any, path: str) -> dict[str, Any]:
    """What a file system says of a file."""
    options = {"auto_decompress": False} if url_kind(path) in HTTP else {}
    info: dict[str, Any] = system.info(path, **options)
    return info


def _is_hidden(path: str, pattern: str) -> bool:
    """Whether a path has a hidden name below the part that a pattern spells out, and the pattern names no hidden file."""
    spelled = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] if "*" in pattern else pattern
    if any(part.startswith(".") for part in pattern.removeprefix(spelled).split("/")):
        return False
    return any(part.startswith(".") for part in path.removeprefix(spelled).split("/"))
