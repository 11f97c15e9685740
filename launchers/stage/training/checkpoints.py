"""Checkpoints on disk: written to a temporary folder, synced, checksummed, renamed; the last two are kept.

    checkpoint/step-000001200/
      rank-00000.safetensors   this rank's part of the weights, the moments and the best weights
      rank-00000.json          the tensors and rows in that file, this rank's own values, the SHA-256 of that file
      state.json               the step, the number of ranks, values that all ranks share, the SHA-256 of each rank's JSON file

Nothing is pickled. The JSON files say which rows of a sharded tensor (FSDP) each rank has, so any number of ranks can read it.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from retain.results.store.runs import sha256_of
from retain.sweeps.base.documents import FORMAT, read_document, unreadable
from retain.sweeps.base.errors import (
    NO_ROOM,
    DamageError,
    MissingResourceError,
    NewerFormatError,
    StageFailedError,
    os_reason,
)
from retain.sweeps.base.files import remove, share, sync_path, write_text

KEPT = 2
"""The number of checkpoints that are kept."""
OTHERS_WAIT_S = 600.0
"""How long rank 0 waits for the other ranks' files of a checkpoint."""


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a checkpoint, copied so that training can continue."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    """On the CPU; empty if another rank writes the same tensors."""
    rows: Mapping[str, tuple[int, int]]
    """For sharded tensors: the first row of this rank, and the number of rows of the whole tensor."""
    own: Mapping[str, Any]
    """JSON values of this rank alone."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that all ranks share; only those of rank 0 are written."""


class _Manifest(TypedDict):
    """The content of a checkpoint's state.json."""

    step: int
    world: int
    shared: dict[str, Any]
    files: dict[str, str]


class _Rank(TypedDict):
    """The content of rank-*.json."""

    sha256: str | None
    names: list[str]
    rows: dict[str, list[int]]
    own: dict[str, Any]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint on disk."""

    folder: Path
    step: int
    world: int
    shared: Mapping[str, Any]
    ranks: tuple[Mapping[str, Any], ...]
    """The content of rank-*.json, in order."""

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds a tensor."""
        return any(name in rank["names"] for rank in self.ranks)

    def copy_into(self, name: str, target: torch.Tensor, first_row: int | None) -> None:
        """Fill a tensor from the files of all ranks. With `first_row`, `target` holds the rows from there on (a shard)."""
        for number, rank in enumerate(self.ranks):
            if name not in rank["names"]:
                continue
            with safe_open(self.folder / f"rank-{number:05d}.safetensors", "pt") as file:
                if first_row is None and name not in rank["rows"]:
                    target.copy_(file.get_tensor(name))
                    return
                # Copy the rows that both this file and the target have.
                begin = rank["rows"].get(name, (0, 0))[0]
                part = file.get_slice(name)
                mine = first_row or 0
                low, high = max(begin, mine), min(begin + part.get_shape()[0], mine + target.shape[0])
                if low < high:
                    target[low - mine : high - mine].copy_(part[low - begin : high - begin])


def checkpoint_folders(folder: Path) -> list[Path]:
    """The folders of the checkpoints in `folder`, newest first; they may be damaged."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)), reverse=True)


def open_checkpoint(path: Path, check: bool = True) -> SavedCheckpoint:
    """Open a checkpoint; with `check`, verify every checksum.

    Raises ValueError, which names the damaged file; DamageError if the checkpoint may not be read, or a newer version of Retain
    wrote it, so that it must not be removed.
    """
    try:
        manifest, ranks = read_document(path / "state.json", _Manifest, ""), []
        for name, digest in manifest["files"].items():
            if check and sha256_of(path / name) != digest:
                raise ValueError(f"{path.name}/{name} is damaged")
            rank = read_document(path / name, _Rank, "")
            tensors = path / name.replace(".json", ".safetensors")
            if check and rank["sha256"] and sha256_of(tensors) != rank["sha256"]:
                raise ValueError(f"{path.name}/{tensors.name} is damaged")
            ranks.append(rank)
        return SavedCheckpoint(path, manifest["step"], manifest["world"], manifest["shared"], tuple(ranks))
    except DamageError as error:
        if isinstance(error, NewerFormatError) or isinstance(error.__cause__, OSError):
            raise
        raise ValueError(f"{path.name} is damaged ({str(error).rpartition(';')[0]})") from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"{path.name} is damaged ({error})") from None
    except OSError as error:
        raise unreadable(path, error, "check the file system") from error


def newest_checkpoint(folder: Path, note: Callable[[str], None]) -> SavedCheckpoint | None:
    """The newest undamaged checkpoint; None if there is none. Removes damaged ones, and calls `note` for each."""
    for path in checkpoint_folders(folder):
        try:
            return open_checkpoint(path)
        except ValueError as error:
            note(f"checkpoint {error}; it is removed and an older one is used")
            remove(path)
    return None


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time: `save` first waits until the previous one is written."""

    def __init__(self, folder: Path, rank: int, world: int, may_write: Callable[[], bool]) -> None:
        self.folder, self.rank, self.world, self.may_write = folder, rank, world, may_write
        self.thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self.write: futures.Future[None] | None = None
        """The latest write, until its error or its success is known."""
        self.saved_step: int | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start to write a checkpoint. Raises the error of the previous write, if it failed."""
        self.wait()
        self.write = self.thread.submit(self._run, snapshot)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises MissingResourceError or StageFailedError if a write failed."""
        if self.write is not None:
            write, self.write = self.write, None
            write.result()

    def raise_error(self) -> None:
        """Raise the error of a write that has failed, once."""
        if self.write is not None and self.write.done():
            self.wait()

    def abandon(self) -> None:
        """Wait for a write, and ignore its error."""
        if self.write is not None:
            futures.wait([self.write])

    def _run(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
            self.saved_step = snapshot.step
        except OSError as error:
            step = self.saved_step
            cure = "free space" if error.errno in NO_ROOM else "let this user write there"
            kept = "older checkpoints are kept" if step is None else f"the checkpoint of step {step} is kept"
            raise MissingResourceError(
                f"{self.folder}: the checkpoint of step {snapshot.step} cannot be written ({os_reason(error)}); "
                f"{cure} and run it again, {kept}"
            ) from error

    def _write(self, snapshot: Snapshot) -> None:
        partial = self.folder / f".step-{snapshot.step:09d}"
        # Without the run's folder: it may be gone, as where the store was moved, and nothing must take its place.
        self.folder.mkdir(exist_ok=True)
        partial.mkdir(exist_ok=True)
        try:
            self._write_rank(partial, snapshot)
            if self.rank == 0:
                self._commit(partial, snapshot)
        except BaseException:
            if self.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _write_rank(self, partial: Path, snapshot: Snapshot) -> None:
        name = f"rank-{self.rank:05d}"
        digest = None
        if snapshot.tensors:
            save_file(dict(snapshot.tensors), partial / f"{name}.safetensors")
            share(partial / f"{name}.safetensors")
            digest = sha256_of(partial / f"{name}.safetensors")
        description = {
            "format": FORMAT,
            "sha256": digest,
            "names": list(snapshot.tensors),
            "rows": {tensor: list(rows) for tensor, rows in snapshot.rows.items()},
            "own": dict(snapshot.own),
        }
        if digest:
            sync_path(partial / f"{name}.safetensors")
        write_text(partial / f"{name}.json", json.dumps(description, allow_nan=False))

    def _commit(self, partial: Path, snapshot: Snapshot) -> None:
        """Complete a checkpoint once all ranks have written their parts. For rank 0."""
        # 1. Wait for the other ranks, then write their checksums.
        names = [f"rank-{rank:05d}.json" for rank in range(self.world)]
        deadline = time.monotonic() + OTHERS_WAIT_S
        while missing := [name for name in names if not (partial / name).exists()]:
            if time.monotonic() > deadline:
                raise StageFailedError(
                    f"the checkpoint of step {snapshot.step} lacks {missing[0]} after {OTHERS_WAIT_S:.0f} s"
                )
            time.sleep(0.02)
        files = {name: sha256_of(partial / name) for name in names}
        shared = {"format": FORMAT, "step": snapshot.step, "world": self.world, "shared": dict(snapshot.shared)}
        shared["files"] = files
        write_text(partial / "state.json", json.dumps(shared, allow_nan=False))
        sync_path(partial)
        # 2. Publish the checkpoint by a rename, unless another process has taken over the run.
        if not self.may_write():
            raise StageFailedError("another process has taken over this run; this process writes nothing more")
        final = self.folder / partial.name.removeprefix(".")
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync_path(self.folder)
        # 3. Remove the oldest.
        for old in checkpoint_folders(self.folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished checkpoints of killed writers. For rank 0, before any rank writes."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
