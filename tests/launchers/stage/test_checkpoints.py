"""What a state on disk holds, whatever the pace at which states are taken and whatever becomes of its files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training import checkpoints
from retain.launchers.stage.training import resume as resuming
from retain.launchers.stage.training.checkpoints import (
    CheckpointWriter,
    SavedCheckpoint,
    Snapshot,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
    remove_unfinished,
)
from retain.launchers.stage.training.resume import CONTINUE, Cadence, Resume
from retain.lightning_modules.models import build_model
from retain.lightning_modules.optimisation import MOMENTS
from retain.lightning_modules.stage import StageModule
from retain.sweeps.base.errors import MissingResourceError, NewerFormatError, StageFailedError
from retain.sweeps.schema.models import Architecture
from tests.disks import recorded_syncs

LARGE = Architecture(layers=6, hidden=512, heads=8, kv_heads=8, mlp=2048, vocabulary=4096, tied=True, context=64)
"""A state of 330 MB takes longer to write than to copy."""


def save(folder: Path, *steps: int) -> SavedCheckpoint:
    """Save a checkpoint of one small tensor at each of these steps; returns the last."""
    writer = CheckpointWriter(folder, 0, 1, lambda: True)
    for step in steps:
        writer.save(Snapshot(step, {"weight": torch.full((2, 2), float(step))}, {}, {"digest": "0"}))
    writer.wait()
    return open_checkpoint(checkpoint_folders(folder)[0])


def test_the_last_two_checkpoints_are_kept_and_a_copy_that_a_user_has_made(tmp_path: Path) -> None:
    (tmp_path / "step-000000009 copy").mkdir()
    save(tmp_path, 2, 10, 9)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000009",
        "step-000000009 copy",
        "step-000000010",
    ]


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_its_name_before_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded_syncs(monkeypatch, tmp_path / "step-000000007") as synced:
        folder = save(tmp_path, 7).folder
    inodes = {path.stat().st_ino for path in (folder, *folder.iterdir())}
    assert inodes <= {inode for inode, named in synced if not named}
    assert (tmp_path.stat().st_ino, True) in synced


def test_a_process_whose_run_was_taken_over_publishes_no_checkpoint(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, 0, 1, lambda: False)
    writer.save(Snapshot(7, {}, {}, {}))
    with pytest.raises(StageFailedError, match="another process has taken over this run"):
        writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_lacks_the_part_of_a_rank_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "OTHERS_WAIT_S", 0.0)
    writer = CheckpointWriter(tmp_path, 0, 2, lambda: True)
    writer.save(Snapshot(7, {}, {}, {}))
    with pytest.raises(StageFailedError, match=r"of step 7 lacks rank-00001\.json"):
        writer.wait()
    assert checkpoint_folders(tmp_path) == []


def test_what_a_killed_writer_has_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 7)
    (tmp_path / ".step-000000008").mkdir()
    (tmp_path / ".step-000000008" / "rank-00000.json").touch()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000007"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("rank-00000.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("rank-00000.safetensors", lambda content: content[:-1]),
        ("rank-00000.json", lambda content: content.replace(b'"digest": "0"', b'"digest": "1"')),
        ("state.json", lambda content: b""),
        ("state.json", lambda content: None),
        ("rank-00000.json", lambda content: None),
        ("rank-00000.safetensors", lambda content: None),
        ("state.json", lambda content: content.replace(b'"shared"', b'"share"')),
    ],
)
def test_whatever_is_damaged_in_a_checkpoint_the_one_before_is_used(
    file: str, change: Callable[[bytes], bytes | None], tmp_path: Path
) -> None:
    place = save(tmp_path, 7, 8).folder / file
    changed = change(place.read_bytes())
    place.unlink() if changed is None else place.write_bytes(changed)
    notes: list[str] = []
    found = newest_checkpoint(tmp_path, notes.append)
    assert found is not None
    assert found.step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000007"]
    (note,) = notes
    assert "step-000000008" in note
    assert "damaged" in note


def test_a_checkpoint_of_a_newer_version_is_never_removed(tmp_path: Path) -> None:
    place = save(tmp_path, 7).folder / "state.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"format": 99}))
    with pytest.raises(NewerFormatError):
        newest_checkpoint(tmp_path, lambda note: None)
    assert place.exists()


@pytest.mark.parametrize("starts", [(0,), (0, 2), (0, 1, 3, 4)])
def test_what_three_ranks_hold_in_parts_is_read_by_any_number_of_ranks(starts: tuple[int, ...], tmp_path: Path) -> None:
    whole = torch.arange(10.0).reshape(5, 2)
    for rank, (first, last) in reversed([*enumerate(((0, 2), (2, 4), (4, 5)))]):  # rank 0 waits for the others
        writer = CheckpointWriter(tmp_path, rank, 3, lambda: True)
        writer.save(Snapshot(7, {"weight": whole[first:last].clone()}, {"weight": (first, 5)}, {}))
        writer.wait()
    saved = open_checkpoint(tmp_path / "step-000000007")
    for first, last in zip(starts, (*starts[1:], 5), strict=True):
        part = torch.full((last - first, 2), -1.0)
        saved.copy_into("weight", part, None if len(starts) == 1 else first)
        assert torch.equal(part, whole[first:last])


def test_a_checkpoint_that_cannot_be_written_names_the_folder_and_the_cure(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.write_text("in the way")
    writer = CheckpointWriter(folder, 0, 1, lambda: True)
    writer.save(Snapshot(7, {}, {}, {}))
    with pytest.raises(
        MissingResourceError, match=r"of step 7 cannot be written .*; let this user write there"
    ) as found:
        writer.wait()
    assert str(found.value).startswith(f"{folder}: ")


@pytest.mark.slow
def test_states_that_follow_each_other_faster_than_they_are_written_are_whole(tmp_path: Path) -> None:
    module = StageModule(build_model(LARGE, 0), {"dropout": 0, "steps": 100})
    optimizer = torch.optim.AdamW(module.model.parameters())
    for parameter in module.model.parameters():
        optimizer.state[parameter] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    # Stand-ins for what a snapshot asks besides: where it is, and the curves so far.
    trainer = cast(Any, SimpleNamespace(global_rank=0, world_size=1, optimizers=[optimizer], should_stop=False))
    data, curves = cast(Any, SimpleNamespace(digest=0)), cast(Any, SimpleNamespace(state=dict))
    writer = CheckpointWriter(tmp_path, 0, 1, lambda: True)
    resume = Resume(None, None, data, curves, None, writer, StopRequest(), Cadence(0.0, None), holds_all=True)
    resume.agreement = cast(Any, SimpleNamespace(settle=lambda wish: wish))
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in module.model.parameters():
                for tensor in (parameter, *optimizer.state[parameter].values()):
                    tensor.fill_(step)
        module.step = step
        resume.on_train_batch_end(trainer, module, None, None, 0)
    writer.wait()
    states = [open_checkpoint(path) for path in checkpoint_folders(tmp_path)]
    assert [state.step for state in states] == [3, 2]
    for state in states:
        tensors = load_file(state.folder / "rank-00000.safetensors")
        torn = [name for name, tensor in tensors.items() if not bool((tensor == state.step).all())]
        assert torn == []


def test_several_ranks_which_save_one_step_after_they_are_asked_save_once_each_time_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[int] = []
    now, asked = 0.0, CONTINUE

    def settle(wish: int) -> int:
        nonlocal asked
        answer, asked = asked, wish
        return answer

    monkeypatch.setattr(resuming, "time", SimpleNamespace(monotonic=lambda: now))
    module = StageModule(build_model(replace(LARGE, layers=1, hidden=16, mlp=16), 0), {"dropout": 0, "steps": 100})
    trainer = cast(Any, SimpleNamespace(global_rank=0, world_size=2, optimizers=[], should_stop=False))
    none, writer = cast(Any, None), cast(Any, SimpleNamespace(raise_error=int, wait=int, save=saved.append))
    resume = Resume(None, None, none, none, None, writer, StopRequest(), Cadence(5.0, None), holds_all=True)
    resume.agreement = cast(Any, SimpleNamespace(settle=settle))
    monkeypatch.setattr(resume, "_snapshot", lambda trainer, module: module.step)
    for step in range(1, 21):  # a second each
        now, module.step = float(step), step
        resume.on_train_batch_end(trainer, module, None, None, 0)
    assert saved == [6, 12, 18]
