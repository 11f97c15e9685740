"""The devices of this machine, as slots for stages that run at the same time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.schema.execution import Execution


@dataclass(frozen=True)
class Slot:
    """Room for one run at a time."""

    ranks: Mapping[str, int]
    """The number of ranks for each stage."""
    gpus: tuple[str, ...] = ()
    """The GPUs of the slot; empty on the CPU."""


def local_slots(execution: Execution, chain: Sequence[str]) -> list[Slot]:
    """One slot for each run that may run at a time. chain: the names of the stages.

    Raises MissingResourceError if the machine lacks the requested devices.
    """
    stages = {name: execution.of_stage(name) for name in chain}
    ranks = {name: stage.devices for name, stage in stages.items()}
    on_gpus = [stage for stage in stages.values() if stage.accelerator != "cpu"]
    gpus = _count_gpus() if on_gpus else 0
    most = max((stage.devices for stage in on_gpus), default=0)
    if (gpus or any(stage.accelerator == "gpu" for stage in on_gpus)) and gpus < most:
        raise MissingResourceError(
            f"execution.devices: a stage needs {most} GPUs, and this machine has {gpus}; "
            "ask for fewer, or set execution.accelerator=cpu"
        )
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        groups = [tuple(names[first : first + most]) for first in range(0, gpus - most + 1, most)]
        return [Slot(ranks, group) for group in groups[: execution.parallel]]
    return [Slot(ranks)] * execution.stages_at_a_time(chain, usable_cores())


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
