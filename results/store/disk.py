"""Check before a stage starts that its files will fit on the disk."""

import contextlib
import os
import shutil
from pathlib import Path

from retain.sweeps.base.errors import NoRoomError
from retain.sweeps.base.units import format_bytes

SMALL_FILES = 32 * 2**20
"""Bytes allowed for the tokeniser, the curves, the log, and the JSON files of checkpoints."""


MOMENT_BYTES = 8
"""Bytes of AdamW's two moments of one parameter."""


def stage_bytes(parameters: int, trained: int | None = None) -> int:
    """The most bytes that the files of one stage occupy: 52 = 4 · (3 · 4 + 1) for each parameter, and 32 MiB.

    Three checkpoints hold four values for each trained parameter, the final weights one value for each parameter; a value has
    four bytes. trained: the number of trained parameters, if that is less than all.
    """
    # The import is slow, and linear stages do not need it.
    from retain.sweeps.tree.cost import BYTES_PER_VALUE, CHECKPOINT_VALUES, CHECKPOINTS_ON_DISK

    in_checkpoints = CHECKPOINTS_ON_DISK * CHECKPOINT_VALUES * (parameters if trained is None else trained)
    return BYTES_PER_VALUE * (in_checkpoints + parameters) + SMALL_FILES


def used_bytes(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; files that are removed during the count do not count."""
    files = [str(place)]
    if place.is_dir() and not place.is_symlink():
        files = [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += os.lstat(file).st_size
    return total


def check_room(folder: Path, needed: int, what: str = "") -> None:
    """Check that `needed` bytes are free on the disk of `folder`, which need not exist yet. Raises NoRoomError.

    what: what they are needed for, before the number.

    A quota that the file system does not report shows only when a write fails.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoRoomError(
            f"{folder}: {what}{format_bytes(needed)} are needed and {format_bytes(free)} are free; "
            "free space, or choose another disk with --store"
        )
