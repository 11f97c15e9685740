"""Folders of a store that are built under building/ and published by a rename, so that a reader never sees half of one."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from retain.sweeps.base.errors import RetainError
from retain.sweeps.base.files import remove, sync_folder
from retain.sweeps.base.notices import notice
from retain.sweeps.base.processes.names import is_gone, process_name


def new_build_folder(store: Path) -> Path:
    """Return the path of a new folder named after this process, so that others can tell whether its owner is alive."""
    return store / "building" / f"{process_name()}-{os.urandom(4).hex()}"


@contextlib.contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Begin without a folder, and remove it if the block fails: a full disk keeps what is whole, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def publish(building: Path, target: Path, check: Callable[[Path], object]) -> None:
    """Move finished data from its build folder to `target`. Data that is there stays, unless `check` finds damage."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(building)
    if os.path.lexists(target):
        try:
            check(target)
        except (RetainError, OSError):
            notice(f"{target} is damaged and will be replaced")
            damaged = building.with_name(f"{process_name()}-{os.urandom(4).hex()}")
            target.rename(damaged)
            remove(damaged)
    try:
        building.rename(target)
    except OSError:
        # Another process has published the same data.
        if not target.is_dir():
            raise
        shutil.rmtree(building)


def remove_leftovers(store: Path) -> None:
    """Remove the build folders of processes that are gone."""
    for building in (store / "building").glob("*-*"):
        if is_gone(building.name.rpartition("-")[0]):
            shutil.rmtree(building, ignore_errors=True)
