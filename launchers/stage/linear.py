"""The kind `linear`: one stage of a linear study, trained in numpy on the exact population loss.

A stage takes about a second, so it saves no checkpoints. An interrupted stage starts again and ends in the same bits, as
everything random follows from the seed.
"""

import math
import shutil
import time

import numpy as np

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.reporting.loggers import log_whole
from retain.launchers.stage.signals import AttemptStopped
from retain.lightning_modules.linear import LinearModel, descend, load_linear, population_loss, start_linear
from retain.results.store.curves import CurveWriter, Point, heldout_curve
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.runs import LOSSES
from retain.results.store.state import Progress
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.tree.linear_stage import stage_task, task_of

RECORDS = 150
"""Number of points in a stage at which the strengths of the features are recorded."""
REPORT_EVERY_S = 1.0


def attempt(context: AttemptContext) -> None:
    """Train, evaluate and finish a run. Raises StageFailedError, AttemptStopped."""
    run, spec = context.run, context.spec
    recipe, steps = spec["recipe"], spec["recipe"]["steps"]
    partial = run.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    context.begin()
    check_room(run.folder, SMALL_FILES)
    splits = {role: task_of(corpus) for role, corpus in spec["evaluation"].items()}
    began = reported = time.monotonic()
    times: list[float] = []
    strengths: list[list[float]] = []
    curves = CurveWriter(run.folder)
    model, regularisation = _starting_model(context), recipe.get("regularisation", 0.0)
    losses: dict[str, float] = {}
    np.seterr(over="ignore", invalid="ignore")  # divergence is noticed below
    for step, model in descend(  # noqa: B020
        model, stage_task(recipe), recipe["lr"], steps, regularisation, max(1, steps // RECORDS)
    ):
        losses = {role: population_loss(model, task) for role, task in splits.items()}
        times.append(step * recipe["lr"])
        strengths.append(model.strengths.tolist())
        if not all(map(math.isfinite, (*strengths[-1], *losses.values()))):
            raise StageFailedError(f"gradient descent diverged after {step} steps: lower lr", DIVERGED)
        curves.points += [Point(heldout_curve(role), step, loss, time.time()) for role, loss in losses.items()]
        if context.stop.signal and step < steps:
            raise AttemptStopped(context.stop.signal)
        if step == steps or time.monotonic() - reported > REPORT_EVERY_S:
            reported = time.monotonic()
            context.report(Progress(step, steps, None, step / max(reported - began, 1e-9)))
    results = {
        "splits": {role: {"loss": loss, "tokens": 0} for role, loss in losses.items()},
        "steps": steps,
        "trained_tokens": steps,
        "features": {"times": times, "strengths": strengths},
    }
    curves.rewrite()
    log_whole(context.store, run, curves.points, results["splits"])
    model.save(partial)
    context.finish(partial, {LOSSES: results})


def _starting_model(context: AttemptContext) -> LinearModel:
    if context.spec["parent"]:
        return load_linear(usable_parent(context.store, context.spec["parent"]).model)
    model = context.spec["recipe"]["model"]["linear"]
    return start_linear(model["features"], model["start"], context.spec["recipe"]["seed"])
