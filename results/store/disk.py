"""Checks before a stage starts that what it will write fits on the disk."""

import os
import shutil
from pathlib import Path

from retain.sweeps.base.errors import NoRoomError
from retain.sweeps.base.units import format_bytes

SMALL_FILES = 32 * 2**20
"""Bytes allowed for the tokeniser, the curves, the log, and what checkpoints hold besides tensors."""


def stage_bytes(parameters: int, trained: int | None = None) -> int:
    """The most bytes that one stage occupies: 4 · (3 · 4 + 1) = 52 a parameter, and 32 MiB.

    Three checkpoints with four numbers for each trained parameter (all, unless `trained` is given), final weights with one
    number for each parameter, four bytes a number.
    """
    # Imported here, as linear stages need none of it and it takes long.
    from retain.sweeps.tree.cost import BYTES_PER_VALUE, CHECKPOINT_VALUES, CHECKPOINTS_ON_DISK

    in_states = CHECKPOINTS_ON_DISK * CHECKPOINT_VALUES * (parameters if trained is None else trained)
    return BYTES_PER_VALUE * (in_states + parameters) + SMALL_FILES


def used_bytes(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; files that vanish meanwhile are not counted."""
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
    """Check that `needed` bytes are free; `folder` need not exist yet.

    Raises NoRoomError. A quota that the file system does not report is noticed only when writing.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoRoomError(
            f"{folder}: {format_bytes(needed)} are needed and {format_bytes(free)} are free; "
            "free space, for instance with retain gc, or choose another disk with --store"
        )
