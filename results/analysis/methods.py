"""Which method, pipeline and seed a row of the loss table belongs to, and its points in a plane of two losses."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.results.store.loss_table import Row

Points = npt.NDArray[np.float64]
"""[n, 2]: a checkpoint a row, two losses in nats per token; lower is better on both."""

EXPOSURE = "pretrain.exposure"
METHODS = (
    "unmixed",
    "mixed",
    "unmixed+dropout",
    "mixed+dropout",
    "unmixed+replay",
    "mixed+replay",
    "unmixed+lora",
    "mixed+lora",
)
PIPELINES = ("music-chemistry", "music-instruction", "instruction-chemistry", "instruction-music")
METHOD_FIELDS = (EXPOSURE, "posttrain.dropout", "posttrain.replay", "posttrain.method")
"""What tells the method of a trial that names none."""
SEEDS = ("seed", "pretrain.seed", "posttrain.seed", "finetune.seed")


def method_of(row: Row) -> str:
    """The method of a trial: its axis `method`, or else what the axes of its fields say.

    Without exposure it is `unmixed` (also where no axis names the exposure), otherwise `mixed`; `+dropout`, `+replay`
    and `+lora` follow where an axis switches them on.
    """
    axes = row["axes"]
    if "method" in axes:
        return str(axes["method"])
    parts = ["mixed" if axes.get(EXPOSURE) else "unmixed"]
    parts += ["dropout"] if axes.get("posttrain.dropout") else []
    parts += ["replay"] if axes.get("posttrain.replay") else []
    parts += ["lora"] if axes.get("posttrain.method") == "lora" else []
    return "+".join(parts)


def with_fixed(rows: Iterable[Row], fixed: Mapping[str, Any]) -> list[Row]:
    """The rows with the values that the study gives to fields of the method which no axis of theirs varies."""
    return [row if "method" in row["axes"] else row | {"axes": {**fixed, **row["axes"]}} for row in rows]


def pipeline_of(row: Row) -> str | None:
    """The pipeline of a trial; None where the study has one only."""
    pipeline = row["axes"].get("pipeline")
    return None if pipeline is None else str(pipeline)


def seed_of(row: Row) -> int:
    """The seed of a trial, 0 where the study does not vary it.

    Where stages have seeds of their own, the earliest varied one counts: trials that share what came before are no
    independent repetitions.
    """
    return next((int(row["axes"][name]) for name in SEEDS if name in row["axes"]), 0)


def has_losses(row: Row, *losses: str) -> bool:
    """Whether the trial has these losses, as finite numbers: neither missing nor of a run that diverged."""
    return all(row[loss] is not None and math.isfinite(row[loss]) for loss in losses)


def points_by_seed(rows: Iterable[Row], x: str, y: str) -> dict[int, Points]:
    """For each seed the losses `x` and `y` of its trials, [n, 2]; trials that lack one of them are left out."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if has_losses(row, x, y):
            found.setdefault(seed_of(row), []).append((row[x], row[y]))
    return {seed: np.array(points, dtype=np.float64) for seed, points in sorted(found.items())}
