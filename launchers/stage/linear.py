"""One stage of a linear study: train it on the exact population loss, and write it into the store.

It takes about a second, so it saves no states: a stage that was killed starts anew, and as nothing in it is random beside
the seed it ends in the same bits.
"""

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.parent import done_parent
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.resume import StageStopped
from retain.lightning_modules.linear import LinearModel, descend, load_linear, population_loss, start_linear
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.lease import Lease
from retain.results.store.runs import Progress, Run, Store
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.schema.linear_theory import Task, mixture
from retain.sweeps.tree.linear_recipes import task_of

RECORDS = 150
"""How many times of a stage its features are kept at."""
TELL_EVERY_S = 1.0


def train_linear(store: Store, run: Run, lease: Lease, stop: StopRequest) -> None:
    """Train, evaluate and finish a run whose lease is held. Raises StageFailedError, StageStopped."""
    torch.set_num_threads(1)
    spec = run.spec()
    recipe, steps = spec["recipe"], spec["recipe"]["steps"]
    partial = run.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    run.begin_attempt(os.getpid())
    check_room(run.folder, SMALL_FILES)
    splits = {role: task_of(corpus) for role, corpus in spec["evaluation"].items()}
    begun = told = time.monotonic()
    times: list[float] = []
    strengths: list[list[float]] = []
    curves = _new_writer(run)
    model = _starting_model(store, spec)
    path = descend(
        model, stage_task(recipe), recipe["lr"], steps, recipe.get("regularisation", 0.0), max(1, steps // RECORDS)
    )
    for step, model in path:
        losses = {role: float(population_loss(model, task)) for role, task in splits.items()}
        for role, loss in losses.items():
            curves.add_scalar(f"heldout/{role}", loss, step)
        times.append(step * recipe["lr"])
        strengths.append(model.strengths.tolist())
        if not all(map(math.isfinite, strengths[-1])):
            raise StageFailedError(f"gradient descent diverged after {step} steps: lower lr", DIVERGED)
        if stop.signal and step < steps:
            raise StageStopped(stop.signal)
        if step == steps or time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            _tell(run, lease, Progress(step, steps, None, step / max(told - begun, 1e-9)))
    curves.close()
    model.save(partial)
    written = {
        "splits": {role: {"loss": loss, "tokens": 0} for role, loss in losses.items()},
        "steps": steps,
        "trained_tokens": steps,
        "features": {"times": times, "strengths": strengths},
    }
    if not lease.held():
        raise StageFailedError("another process has taken this run over; this one writes no more")
    run.finish(partial, written)


def stage_task(recipe: Mapping[str, Any]) -> Task:
    """What a stage descends on: its corpus, or in pretraining its mixture with D_post."""
    own, exposure = task_of(recipe["corpus"]), recipe.get("exposure")
    return mixture(own, task_of(exposure["corpus"]), exposure["weight"]) if exposure else own


def _starting_model(store: Store, spec: Mapping[str, Any]) -> LinearModel:
    if spec["parent"]:
        return load_linear(done_parent(store, spec).model)
    model = spec["recipe"]["model"]["linear"]
    return start_linear(model["features"], model["start"], spec["recipe"]["seed"])


def _new_writer(run: Run) -> SummaryWriter:
    for old in run.folder.glob("events.*"):
        old.unlink()
    return SummaryWriter(str(run.folder))


def _tell(run: Run, lease: Lease, progress: Progress) -> None:
    if lease.held():
        run.save_state(replace(run.state(), progress=progress, heartbeat=time.time()))
