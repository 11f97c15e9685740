"""Whether what a stage will write fits on the disk, asked before it starts."""

import os
import shutil
from pathlib import Path

from retain.sweeps.base.errors import NoRoomError
from retain.sweeps.base.units import format_bytes
from retain.sweeps.tree.cost import BYTES_PER_VALUE, CHECKPOINT_VALUES, CHECKPOINTS_ON_DISK

SMALL_FILES = 32 * 2**20
"""Bytes allowed for the tokeniser, the curves, the log, and what a state holds besides its tensors."""


def stage_bytes(parameters: int, trained: int | None = None) -> int:
    """Bytes that one stage occupies at most: 4 · (3 · 4 + 1) = 52 a parameter, and 32 MiB.

    Three resumable states of four numbers a parameter that is trained (all, unless `trained` says how many), the final
    weights of one, four bytes a number.
    """
    in_states = CHECKPOINTS_ON_DISK * CHECKPOINT_VALUES * (parameters if trained is None else trained)
    return BYTES_PER_VALUE * (in_states + parameters) + SMALL_FILES


def used_bytes(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts nothing."""
    if not place.is_dir() or place.is_symlink():
        try:
            return place.lstat().st_size
        except FileNotFoundError:
            return 0
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def check_room(folder: Path, needed: int) -> None:
    """Check that so many bytes fit beside what lies there already; `folder` need not exist yet.

    Raises NoRoomError. A quota that the file system does not tell is found out only by writing.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoRoomError(
            f"{folder}: {format_bytes(needed)} are needed and {format_bytes(free)} are free; "
            "make room, for instance with retain gc, or choose another disk with --store"
        )
