"""Find the files of a corpus: what paths, folders, URLs and glob patterns name, without leaving out what cannot be read."""

import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from retain.datamodules.corpora.reading.remote import RemoteFile, find_remote, url_kind
from retain.sweeps.base.errors import MissingResourceError, StudyError, os_reason
from retain.sweeps.schema.corpora import Corpus

SourceFile = Path | RemoteFile
"""A file of a corpus, on this machine or at a URL."""


def find_sources(
    patterns: str | list[str], folder: Path, hidden: list[str] | None = None, remote: bool = True
) -> list[SourceFile]:
    """Return the files that match paths, folders, URLs or glob patterns: those of `find_files`, then those of `find_remote`.

    hidden: gets the names of hidden files and folders that are left out. remote: whether to ask servers; their files are left
    out otherwise. Raises as the two do.
    """
    hidden = [] if hidden is None else hidden
    local: list[str] = []
    found: dict[str, RemoteFile] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        place = with_variables(pattern, folder)
        kind = url_kind(place)
        if kind == "file":
            from urllib.request import url2pathname  # imports a client of HTTP

            local.append(url2pathname(urlsplit(place).path))
        elif kind is not None:
            found |= {file.url: file for file in find_remote(place, hidden)} if remote else {}
        else:
            local.append(pattern)
    return [*(find_files(local, folder, hidden) if local else []), *(found[url] for url in sorted(found))]


def find_files(patterns: str | list[str], folder: Path, hidden: list[str] | None = None) -> list[Path]:
    """Return the files that match paths, folders or glob patterns, sorted; relative patterns start at `folder`.

    Links are followed, also to folders. Hidden files and folders are left out unless a pattern names them, as shells do:
    `.ipynb_checkpoints`, `._part.jsonl`; `hidden` gets their names. Raises MissingResourceError if a pattern matches no file,
    or something that it matches cannot be read; StudyError if that is no file, or the pattern is no path.
    """
    found: set[Path] = set()
    left_out: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        start, before = expanded(pattern, folder), set(left_out)
        base, parts = (Path(start.anchor), start.parts[1:]) if start.is_absolute() else (folder, start.parts)
        seen: set[tuple[int, int]] = set()
        try:
            files = [file for match in _matches(base, parts, left_out) for file in _files(match, seen, left_out)]
        except OSError as error:
            raise MissingResourceError(
                f"files: {shown(error.filename)} cannot be read ({os_reason(error)}); make it readable, or correct the path"
            ) from None
        if not files:
            raise MissingResourceError(_no_match(pattern, folder, left_out - before))
        found.update(files)
    if hidden is not None:
        hidden += [shown(path.name) for path in sorted(left_out)]
    return sorted(found)


def _no_match(pattern: str, folder: Path, hidden: set[Path]) -> str:
    """What is said if no file matches a pattern. hidden: the files that match it, but are left out."""
    what = f"files: no file matches {pattern} (in {shown(folder)})"
    if not hidden:
        return f"{what}; correct the path"
    return f"{what} but hidden ones, such as {shown(min(hidden).name)}; write a pattern that names them, or correct the path"


def shown(path: SourceFile | str) -> str:
    """A path or a URL as text, also if its name is not UTF-8."""
    return os.fsencode(str(path)).decode(errors="backslashreplace")


def with_variables(pattern: str, folder: Path, field: str = "files: ") -> str:
    """Return a path or a URL with `$VARIABLE` replaced, unless a file of `folder` has that very name.

    field: what errors begin with. Raises StudyError.
    """
    if not pattern.strip() or "\0" in pattern:
        raise StudyError(f"{field}{pattern!r} is not a path; name a file, a folder or a pattern")
    if os.path.lexists(folder / pattern):
        return pattern
    path = os.path.expandvars(pattern)
    if unset := re.search(r"\$(\w+|\{[^}]*\})", path):
        raise StudyError(f"{field}{pattern}: the variable {unset[0]} is not set; set it, or write the path out")
    return path


def places(corpus: Corpus, folder: Path) -> list[str]:
    """Return the paths and URLs of a corpus's `files` with variables replaced. Raises StudyError."""
    patterns = [corpus.files] if isinstance(corpus.files, str) else corpus.files or []
    return [with_variables(pattern, folder) for pattern in patterns]


def expanded(pattern: str, folder: Path, field: str = "files: ") -> Path:
    """Return a path of a study with `~`, `~user` and `$VARIABLE` replaced, unless a file of `folder` has that very name.

    field: what errors begin with. Raises StudyError.
    """
    path = with_variables(pattern, folder, field)
    if os.path.lexists(folder / pattern):
        return Path(pattern)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise StudyError(f"{field}{pattern}: {user} has no home folder on this machine; write the path out") from None


def absolute(pattern: str, folder: Path) -> str:
    """Return a path or a pattern of a study that means the same from every folder.

    A URL stays as it is, with its variables: they may hold a password, which is for no file.
    """
    is_url = url_kind(with_variables(pattern, folder)) is not None
    return pattern if is_url else str(folder / expanded(pattern, folder))


def local_folder(named: str, folder: Path, field: str, revision: str | None = None) -> Path | None:
    """Return the folder that a field `hf` names, relative to that of the study file; None for an id on the hub.

    field: what errors begin with. revision: what the study names beside it. Raises MissingResourceError if only a path can be
    meant, and no folder is there; StudyError, also for a folder with a revision.
    """
    place = folder / expanded(named, folder, field)
    if place.is_dir():
        if revision is not None:
            raise StudyError(
                f"{field}{named} is a local folder, which has no revisions; remove revision: {revision}, or name an id on "
                "Hugging Face"
            )
        return place
    if named.startswith((".", "/", "~", "$")):
        raise MissingResourceError(f"{field}{named} is not a folder; correct the path")
    return None


def data_set_folder(corpus: Corpus, folder: Path, revision: str | None = None) -> str | None:
    """Return the local data set folder that `hf` names, relative to the study file; None for an id or a format.

    revision: as in `local_folder`. Raises as it does.
    """
    if corpus.hf is None or corpus.files is not None:
        return None
    place = local_folder(corpus.hf, folder, "hf: ", revision)
    return None if place is None else str(place)


def _matches(base: Path, parts: tuple[str, ...], left_out: set[Path]) -> Iterator[Path]:
    """Yield what exists below `base` and matches the parts of a pattern. A part that exists is no pattern: `run[1]`.

    left_out: gets what is hidden.
    """
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if _exists(base / first):
        yield from _matches(base / first, rest, left_out)
    elif first == "**":
        for below in _folders(base, set(), left_out):
            yield from _matches(below, rest, left_out)
    elif re.search(r"[*?\[]", first) and base.is_dir():
        for entry in sorted(base.iterdir()):
            if fnmatchcase(entry.name, first):
                if entry.name.startswith(".") and not first.startswith("."):
                    left_out.add(entry)
                else:
                    yield from _matches(entry, rest, left_out)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def _folders(folder: Path, seen: set[tuple[int, int]], left_out: set[Path]) -> Iterator[Path]:
    """Yield a folder and the folders below it, each once."""
    if folder.is_dir() and _is_new(folder.stat(), seen):
        yield folder
        for entry in _visible(folder, left_out, folders=True):
            yield from _folders(entry, seen, left_out)


def _files(path: Path, seen: set[tuple[int, int]], left_out: set[Path]) -> Iterator[Path]:
    """Yield a file, or all files below a folder; folders that were seen already are left out."""
    try:
        found = path.stat()
    except OSError as error:
        if path.is_symlink() and not isinstance(error, PermissionError):
            raise MissingResourceError(
                f"files: {shown(path)} is a link to nothing; repair or remove the link"
            ) from None
        raise
    if stat.S_ISREG(found.st_mode):
        yield path
    elif not stat.S_ISDIR(found.st_mode):
        raise StudyError(
            f"files: {shown(path)} is a pipe, a socket or a device, expected a file; write its content to a file"
        )
    elif _is_new(found, seen):
        for entry in _visible(path, left_out):
            yield from _files(entry, seen, left_out)


def _visible(folder: Path, left_out: set[Path], folders: bool = False) -> list[Path]:
    """What a folder holds, without what is hidden. folders: whether only hidden folders count as left out."""
    entries = sorted(folder.iterdir())
    hidden = [entry for entry in entries if entry.name.startswith(".")]
    left_out.update(entry for entry in hidden if not folders or entry.is_dir())
    return [entry for entry in entries if not entry.name.startswith(".")]


def _is_new(found: os.stat_result, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was not seen before; links may lead to it several times, or in a circle."""
    identity = (found.st_dev, found.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True
