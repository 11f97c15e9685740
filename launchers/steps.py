"""Settles how a run computes its steps: as its earlier attempts did, so that it ends in the same bits."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from launchers.group import broadcast
from launchers.place import Group
from launchers.states import saved_states
from launchers.step_form import StepForm, recorded_form
from lightning_modules.compiled import why_not_compiled
from results.store import Run


def settle_form(
    run: Run, execution: Mapping[str, Any], group: Group, device: torch.device
) -> tuple[StepForm, list[str]]:
    """The form that this attempt takes, the same on every rank, and the chief's notes on what differs from before.

    A run that has states goes on as it began where the study leaves the choice (`compile: auto`, no micro_batch).
    """
    if not group.chief:
        return StepForm(**json.loads(broadcast("", group.world))), []
    notes: list[str] = []
    begun = bool(saved_states(run.checkpoint))
    before = (recorded_form(run) or StepForm(False, None)) if begun else None
    asked = execution.get("compile", "auto")  # a run that was registered before there was the choice
    compiled = asked if asked != "auto" else before.compiled if before else device.type == "cuda"
    if compiled and (why := why_not_compiled(device)):
        compiled = False
        notes.append(f"steps are not compiled, as this machine cannot ({why}); they are right, only slower")
    form = StepForm(compiled, execution["micro_batch"] or (before.micro_batch if before else None))
    if before and before.compiled != compiled:
        change = "with compiled steps what began without" if compiled else "without compiled steps what began with"
        notes.append(f"goes on {change} them: the same batches, other last bits")
    broadcast(json.dumps(asdict(form)), group.world)
    return form, notes
