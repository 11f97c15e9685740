"""What identified a corpus with files at URLs when its data was last prepared, for while its servers cannot be asked.

<store>/prepared/asked/<digest of the corpus's definition>.json
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from retain.datamodules.corpora.reading.remote import url_kind
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.redaction import redacted

CURE = "delete it"
OWNER_ONLY = 0o600
FOLDER = "asked"
"""The folder of notes in that of prepared data."""
Source = Mapping[str, Any]


class _Saved(TypedDict):
    """The content of a note."""

    source: dict[str, Any]
    time: float


@dataclass(frozen=True)
class Answer:
    """The source of a corpus, with what its servers said of its files."""

    source: dict[str, Any]
    time: float
    """When its data was found prepared for the first time, in seconds since 1970."""

    @property
    def day(self) -> str:
        """The time as a day and a time of day in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.time))


def kept_answer(path: Path) -> Answer | None:
    """Return the answer that was noted at a path; None if there is none, or this user may not read it."""
    try:
        return _read(path)
    except (FileNotFoundError, DamageError):
        return None


def _read(path: Path) -> Answer:
    """Raises as `read_document` does."""
    saved = read_document(path, _Saved, CURE)
    answer = Answer(saved["source"], saved["time"])
    try:
        _ = answer.day
    except (OverflowError, OSError, ValueError):
        raise DamageError(f"{path}: time is out of range; {CURE}") from None
    return answer


def answers_problem(folder: Path) -> str | None:
    """What is wrong with the first damaged note of a folder, and the cure; None if nothing is."""
    if not folder.is_dir():
        return f"{folder} is not a folder; {CURE}"
    for path in sorted(folder.glob("*.json")):
        try:
            _read(path)
        except FileNotFoundError:
            continue
        except DamageError as error:
            if not isinstance(error.__cause__, PermissionError):  # of another user, with a password
                return str(error)
    return None


def keep_answer(path: Path, source: Source) -> None:
    """Note the source of a corpus whose data is prepared, unless it is noted. Does nothing for one without URLs.

    A later version of the source is found by its URLs as they are, so these are kept whole; with a password in one, only the
    owner may read the note.
    """
    known = kept_answer(path)
    if without_urls(source) == source or (known is not None and known.source == source):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(source)
    write_document(path, {"source": source, "time": time.time()}, OWNER_ONLY if redacted(text) != text else None)


def without_urls(source: Any) -> Any:
    """A source without its files at URLs: what can be compared although no server answers."""
    if isinstance(source, dict):
        return {name: without_urls(part) for name, part in source.items()}
    if isinstance(source, list | tuple):
        return [without_urls(part) for part in source if not _is_remote(part)]
    return source


def _is_remote(part: Any) -> bool:
    """Whether it identifies a file at a URL: [url, size, version]."""
    return (
        isinstance(part, list | tuple) and len(part) == 3 and isinstance(part[0], str) and url_kind(part[0]) is not None
    )
