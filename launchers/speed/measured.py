"""The measured speeds of steps that a store keeps, one file for a kind of step, a kind of processor and a user."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError

Precision = Literal["fp32", "bf16"]


class Compiled(TypedDict):
    """What compiling costs and gains in one precision, in seconds of the processor."""

    uncompiled: float
    """A step that is not compiled, timed beside the compiled one."""
    step: float
    cold: float
    """Compiling, before the first step."""
    warm: float
    """Finding the compiled code in the store, in a process that has not used it yet."""


class Speeds(TypedDict):
    """Seconds of the processor that an uncompiled step takes in each precision, and what is known of compiled ones."""

    fp32: float
    bf16: float
    compiled: NotRequired[dict[str, Compiled]]
    """By precision."""
    of: dict[str, Any]
    """The shape of the step; see `launchers.speed.shape`."""


def read_speeds(place: Path) -> Speeds | None:
    """The speeds that a file holds; None if there is none or it is damaged, so that they are measured again."""
    try:
        return read_document(place, Speeds, "delete this file, and the speeds are measured again")
    except (FileNotFoundError, DamageError):
        return None


def write_speeds(place: Path, speeds: Speeds) -> None:
    """Keep speeds, in a folder that exists. Raises OSError."""
    write_document(place, dict(speeds))


def all_speeds(folder: Path) -> Iterator[Speeds]:
    """Everything that a private folder knows."""
    for place in sorted((folder / "steps").glob("*.json")):
        if (speeds := read_speeds(place)) is not None:
            yield speeds
