"""One line of the index of a store: a run that has ended, with the stamp of its state.json.

A line is the key of the run, a space, and a JSON list: the stamp, and the fields of `StateSummary` in their order. Trailing
values that are those of a new `Attempt`, `Progress` or `StateSummary` are left out.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from pydantic_core import from_json

from retain.results.store.state import Attempt, Progress, State, StateSummary
from retain.sweeps.tree.keys import KEY_LENGTH

Made = TypeVar("Made")
Stamp = tuple[int, int, int, int]
"""The modification time, the time of change (both in ns), the size and the inode of a file. Every writer of state.json replaces
the file, which changes the last of them too."""

_UNKNOWN = "unknown"
_SUMMARY, _PROGRESS = ([field.name for field in fields(kind)] for kind in (StateSummary, Progress))
_ATTEMPT = [field.name for field in fields(Attempt) if field.name != _UNKNOWN]
_NEW: dict[type, dict[str, Any]] = {
    kind: {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    for kind in (StateSummary, Progress, Attempt)
}
_NEW[Attempt][_UNKNOWN] = {}
LAYOUT = json.dumps([_SUMMARY, _ATTEMPT, _PROGRESS, _NEW[Attempt], _NEW[Progress]])
"""What the values of a line mean: an index of another layout is of another version."""
_KEY = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def line_of(key: str, stamp: Stamp, state: State) -> str | None:
    """The line of a run; None for a state that a line has no place for, as it is of another version, and for other folders.

    A folder that is not named by a key may have any name, also one with a space or the end of a line.
    """
    if any(attempt.unknown for attempt in state.attempts) or not _KEY.fullmatch(key):
        return None
    values = [getattr(state, name) for name in _SUMMARY]
    values[_SUMMARY.index("attempts")] = [_values(one, _ATTEMPT, Attempt) for one in state.attempts]
    values[_SUMMARY.index("progress")] = _values(state.progress, _PROGRESS, Progress)
    try:
        return f"{key} {json.dumps([stamp, *values], separators=(',', ':'), allow_nan=False)}"
    except ValueError:  # a number as large as 1e999, which JSON can say and Python cannot write
        return None


def key_of(line: str) -> str:
    """The key of the run of a line."""
    return line[:KEY_LENGTH]


def state_in(line: str, key: str, status: os.stat_result) -> StateSummary | None:
    """The state in a line; None where state.json has to be read: it has changed, or the line has half a surrogate pair.

    status: the present status of state.json.
    """
    # The standard library's reader takes half a surrogate pair too, but three times as long for every line.
    try:
        (modified, changed, size, inode), *values = from_json(line[len(key) + 1 :])
    except ValueError:
        return None
    # The times first, as they are what differs; a tuple of all four takes longer to make than to compare.
    if (
        modified != status.st_mtime_ns
        or changed != status.st_ctime_ns
        or size != status.st_size
        or inode != status.st_ino
    ):
        return None
    found = dict(zip(_SUMMARY, values, strict=True))
    found["attempts"] = tuple([_made(Attempt, _ATTEMPT, one) for one in found["attempts"]])
    found["job_ids"] = tuple(found["job_ids"])
    found["progress"] = _made(Progress, _PROGRESS, found["progress"])
    state = object.__new__(StateSummary)
    vars(state).update(found)
    return state


def _values(one: object, names: Sequence[str], kind: type) -> list[Any]:
    """The values of some fields, without those at the end that a new object has."""
    found, new = [getattr(one, name) for name in names], _NEW[kind]
    last = len(names)
    while last and names[last - 1] in new and found[last - 1] == new[names[last - 1]]:
        last -= 1
    return found[:last]


def _made(kind: type[Made], names: Sequence[str], values: Sequence[Any]) -> Made:
    """An object of these values. The constructor of a frozen dataclass takes five times as long."""
    one = object.__new__(kind)
    own = vars(one)
    own.update(_NEW[kind])
    own.update(zip(names, values, strict=False))
    return one
