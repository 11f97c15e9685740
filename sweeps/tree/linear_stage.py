"""What the recipe of a linear stage says, for those who train or draw it; imports nothing that takes long."""

from collections.abc import Mapping
from typing import Any

from retain.sweeps.schema.linear.closed_forms import Task, mixture

LINEAR_METHOD = "gradient descent on the population loss"
"""The value of `method` in the recipe of every linear stage. No other stage has it."""


def task_of(corpus: Mapping[str, Any]) -> Task:
    """The task that a recipe stores as a corpus."""
    return Task(tuple(corpus["targets"]), tuple(corpus["variances"]))


def stage_task(recipe: Mapping[str, Any]) -> Task:
    """The task of a stage: its corpus, or in pretraining the mixture of its corpus with D_post."""
    own, exposure = task_of(recipe["corpus"]), recipe.get("exposure")
    return mixture(own, task_of(exposure["corpus"]), exposure["weight"]) if exposure else own
