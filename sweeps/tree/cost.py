"""What a tree costs: tokens, FLOPs, GPU-hours on each device, bytes on disk at rest and at the peak."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retain.sweeps.schema.linear import is_linear, linear_cost
from retain.sweeps.schema.models import Architecture, adapter_parameters, flops_per_token, matrix_parameters, parameters
from retain.sweeps.tree.throughput import PEAK_FLOPS, Measured, check_device, model_text, modelled_speed
from retain.sweeps.tree.tree import Stage, Tree

BYTES_A_PARAMETER = 4
"""Weights and moments are kept in fp32."""
NUMBERS_A_STATE = 4
"""A resumable state holds, for each parameter, the weight, AdamW's two moments, and the best weight so far."""
STATES = 3
"""The last two are kept while the next one is written beside them."""


@dataclass(frozen=True)
class Totals:
    """Of a tree; flops, hours, disk and jobs count what is still to train."""

    stages: int
    trials: int
    to_train: int
    tokens: int
    tokens_to_train: int
    tokens_without_sharing: int
    flops: float
    gpu_hours: float
    """On the device that was asked for."""
    gpu_hours_by_device: dict[str, float]
    gpu_hours_without_sharing: dict[str, float]
    """By device, if each trial trained those stages for itself."""
    measured: dict[str, int]
    """For each device, how many of the stages to train are priced by what the store's done runs measured on it."""
    disk_bytes: int
    """Weights, once all is done."""
    disk_peak_bytes: int
    """Weights, and the resumable states of as many stages as run at a time."""
    freeable_bytes: int
    """Of the weights, those that nothing starts from any more: what `retain gc --weights` frees."""
    jobs: int


@dataclass(frozen=True)
class Running:
    """How the stages of a kind run, for what it costs."""

    devices: int = 1
    """GPUs of one stage."""
    at_a_time: int = 64
    """Stages side by side, as execution.slurm.at_a_time says."""
    pack: int = 1
    """Siblings that one job trains, as execution.pack says."""


def total_cost(
    tree: Tree,
    done: Collection[str],
    device: str,
    measured: Measured = lambda *_: None,
    running: Mapping[str, Running] | None = None,
) -> Totals:
    """The totals of `retain plan`.

    done: the keys that the store already has; measured: its speeds; running: by kind of stage. Raises StudyError for an
    unknown device.
    """
    check_device(device)
    running = running or {}
    models: dict[str, _Model] = {}
    hours, known = dict.fromkeys(PEAK_FLOPS, 0.0), dict.fromkeys(PEAK_FLOPS, 0)
    alone = dict.fromkeys(PEAK_FLOPS, 0.0)
    trials = Counter(key for trial in tree.trials for key in trial.path)
    flops = tokens = disk = freeable = 0
    states: dict[str, list[int]] = {}
    families: Counter[tuple[str, str | None]] = Counter()
    parents = {stage.parent for stage in tree.stages.values()}
    for stage in tree.stages.values():
        # Children follow their parents, so the model that they start from is there when they need it.
        model = models[stage.parent] if stage.parent else _root_model(stage)
        per_token, trained = model.flops, model.parameters
        if '"method":"lora"' in stage.recipe:
            per_token, trained, model = _with_adapters(model, json.loads(stage.recipe))
        models[stage.key] = model
        if stage.key in done:
            continue
        families[stage.stage, stage.parent] += 1
        tokens += stage.tokens
        flops += stage.tokens * per_token
        weights = model.parameters * BYTES_A_PARAMETER
        disk += weights
        freeable += weights if stage.key in parents else 0
        states.setdefault(stage.stage, []).append(STATES * NUMBERS_A_STATE * trained * BYTES_A_PARAMETER)
        devices = running.get(stage.stage, Running()).devices
        for name in PEAK_FLOPS:
            speed = measured(stage.stage, model.text, devices, name)
            known[name] += speed is not None
            each = speed / devices if speed else modelled_speed(per_token, model.parameters, name)
            hours[name] += stage.tokens / each / 3600
            alone[name] += stage.tokens / each / 3600 * trials[stage.key]
    beside = max(
        (sum(sorted(sizes)[-running.get(kind, Running()).at_a_time :]) for kind, sizes in states.items()), default=0
    )
    missing = sum(map(len, states.values()))
    return Totals(
        stages=len(tree.stages),
        trials=len(tree.trials),
        to_train=missing,
        tokens=sum(stage.tokens for stage in tree.stages.values()),
        tokens_to_train=tokens,
        tokens_without_sharing=sum(tree.stages[key].tokens for trial in tree.trials for key in trial.path),
        flops=float(flops),
        gpu_hours=hours[device],
        gpu_hours_by_device=hours,
        gpu_hours_without_sharing=alone,
        measured=known,
        disk_bytes=disk,
        disk_peak_bytes=disk + beside,
        freeable_bytes=freeable,
        jobs=sum(-(-count // running.get(kind, Running()).pack) for (kind, _), count in families.items()),
    )


@dataclass(frozen=True)
class _Model:
    """What a stage ends with."""

    flops: int
    """To train all of it, a token."""
    parameters: int
    text: str
    """As `model_text` has it."""
    architecture: Architecture | None
    """None for the linear model."""


def _root_model(root: Stage) -> _Model:
    recipe = json.loads(root.recipe)
    if is_linear(recipe):
        return _Model(*linear_cost(recipe), "", None)
    model = Architecture(**recipe["model"])
    return _Model(flops_per_token(model, recipe["sequence_length"]), parameters(model), model_text(recipe), model)


def _with_adapters(model: _Model, recipe: Mapping[str, Any]) -> tuple[int, int, _Model]:
    """FLOPs a token of training adapters, how many parameters are trained, and the merged model.

    A frozen matrix has no gradient of its own: 4 a parameter instead of 6. An adapter on a tied head unties it.
    """
    assert model.architecture is not None
    lora = recipe["lora"]
    adapters = adapter_parameters(model.architecture, lora["rank"], lora["targets"])
    flops = model.flops - 2 * matrix_parameters(model.architecture) + 6 * adapters
    merged = replace(model.architecture, tied=model.architecture.tied and "lm_head" not in lora["targets"])
    return flops, adapters, replace(model, parameters=parameters(merged), architecture=merged)
