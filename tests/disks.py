"""Small file systems, for what happens when a disk is full, and what is on disk when the power fails."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk_at(place: Path, megabytes: int, files: int = 0) -> Iterator[Path]:
    """A tmpfs of this size; where this user may not mount one, skip with the reason, or in CI fail with it.

    files: the most files and folders on it; 0 for any number.
    """
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,nr_inodes={files}", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        why = f"cannot mount a small file system: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {why}")
        pytest.skip(why)
    try:
        yield place
    finally:
        # Lazily, as jobs of a test that has failed may still write there.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Fill a small file system to its last byte; returns the file that takes the room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler


def enlarge(disk: Path, megabytes: int) -> None:
    """Give a small file system this size, and room for any number of files."""
    subprocess.run(["mount", "-o", f"remount,size={megabytes}m,nr_inodes=0", str(disk)], check=True)


@contextlib.contextmanager
def read_only_at(place: Path, folder: Path) -> Iterator[Path]:
    """A folder as a file system that may only be read; skips as `small_disk_at` does."""
    with small_disk_at(place, 1):
        subprocess.run(["mount", "--bind", str(folder), str(place)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def recorded_syncs(monkeypatch: pytest.MonkeyPatch, name: Path) -> Iterator[list[tuple[int, bool]]]:
    """The inode of each file or folder that is synced to disk in the block, and whether `name` existed by then."""
    synced: list[tuple[int, bool]] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_ino, name.exists()))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recorded)
        yield synced
