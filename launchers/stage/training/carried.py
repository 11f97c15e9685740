"""AdamW's state at the end of a run, for the stages below that continue with it (`start: {optimizer: carry}`).

A done run that some stage continues from keeps model/optimizer.safetensors: the moments of every parameter, in fp32, and in the
file's metadata the number of AdamW's steps. So a stage that is trained once can be the trunk of several that go on from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.training.distributed import broadcast
from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.optimisation import ADAMW_MOMENTS
from retain.lightning_modules.shards import local_part, stored_rows
from retain.lightning_modules.stage import StageModule
from retain.results.store.garbage import check_kept_optimizer
from retain.results.store.state import KEEPS_OPTIMIZER, OPTIMIZER
from retain.sweeps.base.errors import MissingResourceError, StageFailedError
from retain.sweeps.base.files import share

STEPS = "steps"


@dataclass(frozen=True)
class CarriedOptimizer:
    """AdamW's state at the end of the parent run."""

    path: Path
    steps: int
    """AdamW's steps so far, over all stages that it was carried through."""

    def restore(self, optimizer: torch.optim.Optimizer, module: StageModule) -> None:
        """Give every trained parameter its moments and its step count; of a sharded parameter, this rank's rows."""
        with torch.no_grad(), safe_open(self.path, "pt") as file:
            for name, parameter in trained_parameters(module.model):
                state = optimizer.state[parameter]
                part = local_part(parameter)
                state["step"] = torch.tensor(float(self.steps), dtype=torch.float32, device=part.device)
                for moment in ADAMW_MOMENTS:
                    state[moment] = torch.zeros_like(parameter)
                    local_part(state[moment]).copy_(stored_rows(file, f"{name}/{moment}", parameter))


def carried_optimizer(context: AttemptContext) -> CarriedOptimizer | None:
    """The state that a stage continues with; None if its recipe carries nothing over.

    The files of the parent must have been checked (`usable_parent`). Raises StageFailedError if the parent did not keep it.
    """
    if "start" not in context.spec["recipe"]:
        return None
    parent = context.store.run(context.spec["parent"])
    try:
        check_kept_optimizer({parent: parent.state()})
    except MissingResourceError as error:
        raise StageFailedError(str(error)) from None
    path = parent.model / OPTIMIZER
    with safe_open(path, "pt") as file:
        return CarriedOptimizer(path, int(file.metadata()[STEPS]))


def final_moments(context: AttemptContext, trainer: Trainer, module: StageModule) -> dict[str, torch.Tensor]:
    """AdamW's moments by name, whole and on the CPU, on rank 0; empty unless the run keeps them. Every rank must call this."""
    first = context.ranks.is_first
    # Read again: a study may have registered the stage that continues with them while this one was training.
    keeps = bool(context.run.spec().get(KEEPS_OPTIMIZER)) if first else None
    if not broadcast(keeps, context.ranks.world):
        return {}
    found: dict[str, torch.Tensor] = {}
    optimizer = trainer.optimizers[0]
    for name, parameter in trained_parameters(module.model):
        for moment in ADAMW_MOMENTS:
            value: Any = optimizer.state[parameter][moment]
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if first:
                found[f"{name}/{moment}"] = whole.detach().cpu().clone()
    return found


def write_moments(folder: Path, moments: dict[str, torch.Tensor], steps: int) -> None:
    """Write AdamW's moments after a number of steps beside the weights of a run."""
    save_file(moments, folder / OPTIMIZER, {STEPS: str(steps)})
    share(folder / OPTIMIZER)
