"""The recipes of a linear study's stages.

A stage's `corpus` is the task itself: its singular values and input variances. Its `sequences` are steps of gradient descent,
and a step counts as one token.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear.closed_forms import Task
from retain.sweeps.schema.linear.study import LinearLaterStage, LinearStudy
from retain.sweeps.tree.linear_stage import LINEAR_METHOD


def linear_stage_recipe(study: LinearStudy, stage: str) -> dict[str, Any]:
    """The recipe of a stage of a linear study. Raises StudyError."""
    if stage == "pretrain":
        return linear_pretrain_recipe(study)
    linear = study.model.linear
    if stage == "posttrain":
        return _later_recipe(stage, study.posttrain, linear.task("post"))
    return _later_recipe(stage, study.finetune, linear.task("ft"))


def linear_pretrain_recipe(study: LinearStudy) -> dict[str, Any]:
    """Stage 1: D_pre, mixed with D_post if α > 0. Raises StudyError if an assumption of the theorems does not hold."""
    linear, stage = study.model.linear, study.pretrain
    if linear.assumptions != "explored" and (broken := linear.broken_assumptions()):
        raise StudyError(f"{broken[0]}, or set model.linear.assumptions: explored")
    exposed = {"corpus": _as_corpus(linear.task("post")), "weight": stage.exposure} if stage.exposure else None
    return {
        "model": {"linear": {"features": linear.features, "start": linear.start}},
        "seed": study.seed,
        "corpus": _as_corpus(linear.task("pre")),
        "exposure": exposed,
        **_descent("pretrain", stage.lr, stopping_time(study)),
    }


def stopping_time(study: LinearStudy) -> float:
    """The stopping time of pretraining, in time of the gradient flow.

    The default is T / (α*β), the time at which, at the threshold α*, the specialised and the inconsistent feature are both
    being learned. By then pretraining has learned the specialised feature if α is above α*, the inconsistent one if below.
    Raises StudyError if the study gives none and has no threshold α* to derive the default from.
    """
    if study.pretrain.time is not None:
        return study.pretrain.time
    linear = study.model.linear
    found = [alpha for alpha in linear.thresholds() if alpha]
    if len(found) < linear.inconsistent:
        raise StudyError(
            "pretrain.time: the default needs a threshold α* above 0 for every inconsistent feature, and at least one "
            "has none; set pretrain.time"
        )
    return linear.start / (max(found) * linear.beta)


def linear_cost(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """The FLOPs of one step (four products of n × n matrices) and the number of parameters."""
    n = recipe["model"]["linear"]["features"]
    return 8 * n**3, 2 * n**2


def _later_recipe(name: str, stage: LinearLaterStage, task: Task) -> dict[str, Any]:
    return {
        "corpus": _as_corpus(task),
        "regularisation": stage.regularisation,
        **_descent(name, stage.lr, stage.time),
    }


def _descent(name: str, lr: float, time: float) -> dict[str, Any]:
    steps = round(time / lr)
    if not steps:
        raise StudyError(f"{name}.lr: a time of {time:g} rounds to zero steps of {lr:g}; lower {name}.lr")
    return {"method": LINEAR_METHOD, "lr": lr, "steps": steps, "sequences": steps, "sequence_length": 1, "batch": 1}


def _as_corpus(task: Task) -> dict[str, Any]:
    return {name: list(values) for name, values in asdict(task).items()}
