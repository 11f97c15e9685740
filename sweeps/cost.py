"""What a tree costs: tokens, FLOPs, GPU-hours on a named device, bytes."""

import json
from collections.abc import Collection
from dataclasses import dataclass

from sweeps.errors import StudyError
from sweeps.models import Architecture, flops_per_token, parameters
from sweeps.tree import Stage, Tree

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L40S": 362e12}
"""Dense bf16 FLOP/s, as the vendor states."""

UTILISATION = 0.40
"""The share of the peak assumed to be reached; llm-foundry publishes 41% for 125M on A100 and 42% for 1.3B on H100."""

BYTES_A_PARAMETER = 4
"""Final weights are kept in fp32."""


@dataclass(frozen=True)
class Totals:
    """Of a study; flops, gpu_hours, disk_bytes and jobs count what is still to train."""

    stages: int
    trials: int
    to_train: int
    tokens: int
    tokens_to_train: int
    tokens_without_sharing: int
    flops: float
    gpu_hours: float
    disk_bytes: int
    jobs: int


def total_cost(tree: Tree, done: Collection[str], device: str) -> Totals:
    """The totals of `retain plan`; `done` holds the keys that the store already has. Raises StudyError."""
    if device not in PEAK_FLOPS:
        raise StudyError(f"--device {device}: not known; the devices are {', '.join(PEAK_FLOPS)}")
    flops = tokens = disk = missing = 0
    architectures: dict[str, tuple[int, int]] = {}
    for stage in tree.stages.values():
        # Children follow their parents, so the root's architecture is there when they need it.
        per_token, size = architectures[stage.key] = (
            architectures[stage.parent] if stage.parent else _architecture_cost(stage)
        )
        if stage.key in done:
            continue
        missing += 1
        tokens += stage.tokens
        flops += stage.tokens * per_token
        disk += size * BYTES_A_PARAMETER
    return Totals(
        stages=len(tree.stages),
        trials=len(tree.trials),
        to_train=missing,
        tokens=sum(stage.tokens for stage in tree.stages.values()),
        tokens_to_train=tokens,
        tokens_without_sharing=sum(tree.stages[key].tokens for trial in tree.trials for key in trial.path),
        flops=float(flops),
        gpu_hours=flops / (PEAK_FLOPS[device] * UTILISATION) / 3600,
        disk_bytes=disk,
        jobs=missing,
    )


def _architecture_cost(root: Stage) -> tuple[int, int]:
    """FLOPs a token and parameters."""
    recipe = json.loads(root.recipe)
    model = Architecture(**recipe["model"])
    return flops_per_token(model, recipe["sequence_length"]), parameters(model)
