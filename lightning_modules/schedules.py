"""The learning-rate schedule of a stage."""

import math
from collections.abc import Mapping
from typing import Any


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    floor: float,
    warmup: int,
    schedule: str | Mapping[str, int] = "cosine",
    rise: bool = False,
) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up to `peak`, then decay to `floor` at the last step.

    The default, a cosine, is the schedule of the paper's Table 5. schedule: cosine, linear, constant, or {"wsd": n}, which
    holds the peak and decays linearly over the last n steps. A floor above the peak, as in some rows of the paper's Table 8,
    is lowered to the peak, so that the learning rate stays at the peak after the warm-up; with `rise` it rises to the floor.
    """
    if not rise:
        floor = min(floor, peak)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    if isinstance(schedule, Mapping):
        left = min(1.0, (steps - 1 - step) / schedule["wsd"])
        return floor + (peak - floor) * left
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    if schedule == "linear":
        return floor + (peak - floor) * (1 - progress)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def rate_of_recipe(recipe: Mapping[str, Any], step: int) -> float:
    """Return the learning rate of a step of a recipe, counted from 0."""
    schedule, rise = recipe.get("schedule", "cosine"), recipe.get("floor") == "rise"
    return learning_rate(
        step, recipe["steps"], recipe["lr"], recipe["min_lr"], recipe["warmup"], schedule=schedule, rise=rise
    )
