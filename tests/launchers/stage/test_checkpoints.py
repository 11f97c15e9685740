"""What a state on disk holds, whatever the pace at which states are taken."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training import resume as resuming
from retain.launchers.stage.training.checkpoints import CheckpointWriter, Snapshot, checkpoint_folders, open_checkpoint
from retain.launchers.stage.training.resume import CONTINUE, Cadence, Resume
from retain.lightning_modules.models import build_model
from retain.lightning_modules.optimisation import MOMENTS
from retain.lightning_modules.stage import StageModule
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.models import Architecture

LARGE = Architecture(layers=6, hidden=512, heads=8, kv_heads=8, mlp=2048, vocabulary=4096, tied=True, context=64)
"""A state of 330 MB takes longer to write than to copy."""


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
