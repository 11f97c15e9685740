"""Choose how an attempt computes its steps: as earlier attempts did, so that the run ends in the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.signals import AttemptStopped
from retain.launchers.stage.training.checkpoints import checkpoint_folders
from retain.launchers.stage.training.distributed import broadcast
from retain.launchers.stage.training.numerics import Numerics, differences, recorded_numerics
from retain.lightning_modules.compiled import why_not_compiled, why_not_flex_attention


@dataclass(frozen=True)
class Machine:
    """How this machine computes, before the choices of earlier attempts are considered."""

    gpu: bool
    bf16: bool
    sharded: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")


def machine_of(execution: Mapping[str, Any], world: int = 1) -> Machine:
    """How this machine computes a run on `world` ranks that is executed in this way."""
    gpu = execution["accelerator"] == "gpu" or (execution["accelerator"] == "auto" and torch.cuda.is_available())
    bf16 = execution["precision"] == "bf16" or (execution["precision"] == "auto" and gpu)
    return Machine(gpu, bf16, world > 1 and execution["strategy"] == "fsdp")


def choose_numerics(
    context: AttemptContext, execution: Mapping[str, Any], machine: Machine, model: PreTrainedModel
) -> tuple[Numerics, list[str]]:
    """The choices of this attempt, the same on every rank; and on rank 0, notes on what differs from earlier attempts.

    A run that has checkpoints keeps its first choices where the study leaves them open (`compile: auto`, no micro_batch).
    Raises AttemptStopped if a compiler fails after a stop signal, which may be the reason.
    """
    world = context.ranks.world
    # 1. Rank 0 chooses; the others adopt its choices.
    if not context.ranks.is_first:
        adopted, stopped = broadcast(None, world)
        if stopped:
            raise AttemptStopped(stopped)
        return adopted, []
    # 2. The study decides; what it leaves open is as before, or the default of the device.
    run, device, notes = context.run, machine.device, []
    before = (recorded_numerics(run) or Numerics(False, None)) if checkpoint_folders(run.checkpoint) else None
    wish = execution.get("compile", "auto")  # absent in runs registered before this field existed
    compiled = wish if wish != "auto" else before.compiled if before else device.type == "cuda"
    # 3. Steps are compiled only if a compiler works here.
    why = why_not_compiled(device) if compiled else None
    stopped = context.stop.signal if why else None
    if why:
        compiled = False
        notes.append(f"steps are not compiled, because this machine cannot ({why}); results are right, only slower")
    # 4. Absent, like `compile`, in runs that earlier versions registered.
    deterministic = execution.get("deterministic", True)
    if not deterministic:
        notes.append(
            "kernels need not be deterministic (execution.deterministic: false): a repeated run may not be bit-identical"
        )
    # 5. FlexAttention has no dropout, and is compiled.
    recipe = context.spec["recipe"]
    flex = machine.gpu and compiled and not recipe["dropout"] if "documents" in recipe else None
    if before:
        flex = flex and before.flex_attention
    if flex and (why := why_not_flex_attention(model, device, machine.bf16, deterministic)):
        flex = False
        notes.append(f"tokens attend within documents by masks, because FlexAttention does not work here ({why})")
    micro_batch = execution["micro_batch"] or (before.micro_batch if before else None)
    threads = execution["threads"] if device.type == "cpu" else None
    numerics = Numerics(compiled, micro_batch, machine.bf16, threads, machine.sharded, flex, deterministic)
    broadcast((numerics, stopped), world)
    if stopped:
        raise AttemptStopped(stopped)
    return numerics, [*notes, *(differences(before, numerics) if before else [])]
