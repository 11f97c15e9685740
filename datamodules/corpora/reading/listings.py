"""The file system of http with folders that are listed whole or not at all.

Importing it imports a client of HTTP, so only what asks a server does.
"""

from typing import Any

from fsspec.implementations.http import HTTPFileSystem


class ListingError(Exception):
    """The server of a folder could not be asked for its files; the cause says why."""


class HttpFolders(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """As its base, which takes a folder for an empty one where the connection breaks while it is listed."""

    async def _ls(self, url: str, detail: bool = True, **options: Any) -> Any:
        try:
            return await super()._ls(url, detail, **options)
        except FileNotFoundError:
            raise
        except OSError as error:  # which `find` and `glob` would pass over
            raise ListingError(f"{type(error).__name__}: {error}") from error
