"""Settles how a run computes its steps: as its earlier attempts did, so that it ends in the same bits."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from retain.launchers.stage.ranks import Group
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.checkpoints import saved_states
from retain.launchers.stage.training.distributed import broadcast
from retain.launchers.stage.training.numerics import StepForm, differences, recorded_form
from retain.launchers.stage.training.resume import StageStopped
from retain.lightning_modules.compiled import why_not_compiled
from retain.results.store.runs import Run


def settle_form(
    run: Run,
    execution: Mapping[str, Any],
    bf16: bool,
    sharded: bool,
    group: Group,
    device: torch.device,
    stop: StopRequest,
) -> tuple[StepForm, list[str]]:
    """The form that this attempt takes, the same on every rank, and the chief's notes on what differs from before.

    A run that has states goes on as it began where the study leaves the choice (`compile: auto`, no micro_batch). Raises
    StageStopped where a stop signal has reached the compilers too, whose failure then tells nothing.
    """
    if not group.chief:
        told = json.loads(broadcast("", group.world))
        if told["stopped"]:
            raise StageStopped(told["stopped"])
        return StepForm(**told["form"]), []
    notes: list[str] = []
    before = (recorded_form(run) or StepForm(False, None)) if saved_states(run.checkpoint) else None
    wish = execution.get("compile", "auto")  # a run that was registered before there was the choice
    compiled = wish if wish != "auto" else before.compiled if before else device.type == "cuda"
    why = why_not_compiled(device) if compiled else None
    stopped = stop.signal if why else None
    if why:
        compiled = False
        notes.append(f"steps are not compiled, as this machine cannot ({why}); they are right, only slower")
    micro_batch = execution["micro_batch"] or (before.micro_batch if before else None)
    form = StepForm(compiled, micro_batch, bf16, execution["threads"] if device.type == "cpu" else None, sharded)
    broadcast(json.dumps({"form": asdict(form), "stopped": stopped}), group.world)
    if stopped:
        raise StageStopped(stopped)
    return form, [*notes, *(differences(before, form) if before else [])]
