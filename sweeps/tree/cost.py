"""The cost of a tree: tokens, FLOPs, GPU-hours on each device, and bytes on disk at rest and at the peak."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.families.table import HEAD
from retain.sweeps.schema.linear.study import is_linear
from retain.sweeps.schema.models import ARCHITECTURE_FIELDS, Architecture, model_counts
from retain.sweeps.schema.section import GROUNDWORK, REFERENCE
from retain.sweeps.tree.keys import canonical
from retain.sweeps.tree.recipes.linear import linear_cost
from retain.sweeps.tree.throughput import PEAK_FLOPS, Measured, check_device, model_text, modelled_speed, work_text
from retain.sweeps.tree.tree import Stage, Tree

BYTES_PER_VALUE = 4
"""Weights and AdamW's moments are stored in fp32."""
BYTES_PER_LOG_PROBABILITY = 8
"""The reference log-probability of a sequence is stored in fp64."""
CHECKPOINT_VALUES = 4
"""The values that a checkpoint holds per trained parameter: its weight, AdamW's two moments, and its best weight so far."""
CHECKPOINTS_ON_DISK, KEPT_CHECKPOINTS = 3, 2
"""The last two checkpoints are kept while the next one is being written, and with execution.keep_states also afterwards."""


@dataclass(frozen=True)
class Totals:
    """The totals of a tree. Flops, hours, disk and jobs count only the stages that are still to train."""

    stages: int
    """The number of stages."""
    trials: int
    """The number of trials."""
    to_train: int
    """The number of stages that are still to train."""
    tokens: int
    """The tokens of all stages, trained ones included."""
    tokens_to_train: int
    """The tokens of the stages that are still to train."""
    tokens_without_sharing: int
    """The tokens of all trials if each trained all its stages itself."""
    flops: float
    """The FLOPs of the stages that are still to train."""
    gpu_hours: float
    """The GPU-hours on the requested device."""
    gpu_hours_by_device: dict[str, float]
    """The GPU-hours on each device that Retain knows."""
    gpu_hours_without_sharing: dict[str, float]
    """The GPU-hours by device if each trial trained all its missing stages itself."""
    measured: dict[str, int]
    """The number of stages, by device, whose hours come from speeds that done runs have measured on that device."""
    disk_bytes: int
    """The bytes of all weights once every stage is done."""
    disk_peak_bytes: int
    """The bytes of all weights, of the checkpoints of all stages that run at the same time, and of those that are kept."""
    freeable_bytes: int
    """The bytes of the weights that other stages need, which `retain gc --weights` frees once these are done."""
    jobs: int
    """The number of jobs of the stages that are still to train; a pack is one job."""
    optimizer_bytes: int = 0
    """The bytes, among those of the weights, of AdamW's moments that are kept for the stages that continue with them."""
    kept_checkpoint_bytes: int = 0
    """The bytes of the checkpoints that done stages keep at most (execution.keep_states), which `retain gc` frees."""


@dataclass(frozen=True)
class Parallelism:
    """How many devices, stages and jobs the stages of one kind take, and what they leave."""

    devices: int = 1
    """The GPUs of one stage."""
    at_a_time: int = 64
    """The stages that run at the same time, as in execution.slurm.at_a_time."""
    pack: int = 1
    """The siblings that one job trains, as in execution.pack."""
    keep_states: bool = False
    """Whether done stages keep their last checkpoints, as in execution.keep_states."""


def total_cost(
    tree: Tree,
    done: Collection[str],
    device: str,
    measured: Measured = lambda *_: None,
    parallelism: Mapping[str, Parallelism] | None = None,
) -> Totals:
    """The totals that `retain plan` prints.

    done: the keys of the stages that the store has; measured: the speeds of its runs; parallelism: by kind of stage.
    Raises StudyError for an unknown device.
    """
    check_device(device)
    parallelism = {stage.stage: Parallelism() for stage in tree.stages.values()} | dict(parallelism or {})
    work = _work_by_stage(tree)
    missing = [stage for stage in tree.stages.values() if stage.key not in done]
    weights = {stage.key: _kept_bytes(stage, work[stage.key]) for stage in missing}
    carried = tree.carried()
    moments = {key: 2 * work[key].trained * BYTES_PER_VALUE for key in weights if key in carried}
    weights |= {key: weights[key] + size for key, size in moments.items()}
    needed = {need for stage in tree.stages.values() for need in stage.needs}
    families = Counter((stage.stage, stage.needs) for stage in missing)
    trials = Counter(key for trial in tree.trials_without_sharing for key in tree.runs_of(trial))
    running, kept = _checkpoint_bytes(missing, work, parallelism)
    hours, hours_alone, known = _gpu_hours(trials, missing, work, measured, parallelism)
    return Totals(
        stages=len(tree.stages),
        trials=len(tree.trials),
        to_train=len(missing),
        tokens=sum(stage.tokens for stage in tree.stages.values()),
        tokens_to_train=sum(stage.tokens for stage in missing),
        tokens_without_sharing=sum(tree.stages[key].tokens * count for key, count in trials.items()),
        flops=float(sum(stage.tokens * work[stage.key].flops for stage in missing)),
        gpu_hours=hours[device],
        gpu_hours_by_device=hours,
        gpu_hours_without_sharing=hours_alone,
        measured=known,
        disk_bytes=sum(weights.values()),
        disk_peak_bytes=sum(weights.values()) + running + kept,
        freeable_bytes=sum(
            size for key, size in weights.items() if key in needed and tree.stages[key].stage != REFERENCE
        ),
        jobs=sum(-(-count // parallelism[kind].pack) for (kind, _), count in families.items()),
        optimizer_bytes=sum(moments.values()),
        kept_checkpoint_bytes=kept,
    )


def _kept_bytes(stage: Stage, work: "_Work") -> int:
    """The bytes of what a run leaves for others: weights, a value for each of them, or a value for each sequence."""
    if stage.stage != REFERENCE:
        return work.model.parameters * BYTES_PER_VALUE
    return int(stage.tokens // json.loads(stage.recipe)["sequence_length"] * BYTES_PER_LOG_PROBABILITY)


def evaluation_flops(tree: Tree, evaluations: Sequence[Stage]) -> float:
    """The FLOPs of evaluations of stages of a tree: a forward pass takes a third of what training takes per token."""
    if not evaluations:
        return 0.0
    work = _work_by_stage(tree)
    return sum(one.tokens * work[one.parent].model.flops / 3 for one in evaluations if one.parent)


def parameters_by_root(tree: Tree) -> dict[str, int]:
    """The number of parameters that each first stage of a tree trains, by its key, if the model varies; else empty.

    It is 0 for a checkpoint of the hub that is not prepared.
    """
    roots = [stage for stage in tree.stages.values() if stage.parent is None]
    # Recipes are parsed only if they differ in this: a tree may have 100,000 stages.
    if not any(axis.partition(".")[0] == "model" for root in roots for axis in root.axes):
        return {}
    return {root.key: _root_model(root, tree.models).parameters for root in roots}


@dataclass(frozen=True)
class _Model:
    """The model that a stage ends with."""

    flops: int
    """The FLOPs per token of training all its weights."""
    parameters: int
    text: str
    """The model as `model_text` writes it."""
    counts: ModelCounts | None
    """None for the linear model, and for a checkpoint of the hub that is not prepared."""


@dataclass(frozen=True)
class _Work:
    """What training one stage takes."""

    flops: int
    """The FLOPs per token."""
    trained: int
    """The number of parameters that are trained and saved in checkpoints; 0 for the linear model, of which none are saved."""
    model: _Model


def _gpu_hours(
    trials: Mapping[str, int],
    missing: Sequence[Stage],
    work: Mapping[str, _Work],
    measured: Measured,
    parallelism: Mapping[str, Parallelism],
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """By device: the GPU-hours of the missing stages, from measured speeds where there are any; the hours if each trial trained
    all its stages itself; and the number of stages with a measured speed.

    trials: the number of trials that need a stage, by its key.
    """
    hours, alone = dict.fromkeys(PEAK_FLOPS, 0.0), dict.fromkeys(PEAK_FLOPS, 0.0)
    known = dict.fromkeys(PEAK_FLOPS, 0)
    for stage in missing:
        own, kind, devices = work[stage.key], work_text(stage.recipe), parallelism[stage.stage].devices
        for name in PEAK_FLOPS:
            speed = measured(stage.stage, own.model.text, kind, devices, name)
            known[name] += speed is not None
            if not (speed or own.flops):  # of a checkpoint of the hub that is not prepared, whose size is unknown
                continue
            per_device = speed / devices if speed else modelled_speed(own.flops, own.model.parameters, name)
            hours[name] += stage.tokens / per_device / 3600
            alone[name] += stage.tokens / per_device / 3600 * trials[stage.key]
    return hours, alone, known


def _checkpoint_bytes(
    missing: Sequence[Stage], work: Mapping[str, _Work], parallelism: Mapping[str, Parallelism]
) -> tuple[int, int]:
    """The bytes of the checkpoints at the peak, and the bytes of those that done stages keep, which the former do not include.

    The peak is that of the largest stages of one kind that run at the same time.
    """
    sizes: dict[str, list[int]] = {}
    for stage in (stage for stage in missing if stage.stage not in GROUNDWORK):  # which saves none while it runs
        size = CHECKPOINT_VALUES * work[stage.key].trained * BYTES_PER_VALUE
        sizes.setdefault(stage.stage, []).append(size)
    running, kept = 0, 0
    for kind, own in sizes.items():
        keeps = KEPT_CHECKPOINTS if parallelism[kind].keep_states else 0
        running = max(running, (CHECKPOINTS_ON_DISK - keeps) * sum(sorted(own)[-parallelism[kind].at_a_time :]))
        kept += keeps * sum(own)
    return running, kept


def _work_by_stage(tree: Tree) -> dict[str, _Work]:
    work: dict[str, _Work] = {}
    for stage in tree.stages.values():
        # Parents come before their children, so the model that a stage starts from is known.
        model = work[stage.parent].model if stage.parent else _root_model(stage, tree.models)
        if stage.stage == REFERENCE:
            # Nothing is propagated back, as in `evaluation_flops`.
            work[stage.key] = _Work(model.flops // 3, 0, model)
        # Only recipes with adapters are parsed: a tree may have 100,000 stages.
        elif model.counts and '"method":"lora"' in stage.recipe:
            work[stage.key] = _with_adapters(model, json.loads(stage.recipe))
        else:
            work[stage.key] = _Work(model.flops, model.parameters if model.counts else 0, model)
    return work


def _root_model(root: Stage, checkpoints: Mapping[str, ModelCounts]) -> _Model:
    recipe = json.loads(root.recipe)
    if is_linear(recipe):
        return _Model(*linear_cost(recipe), "", None)
    model = recipe["model"]
    if model.keys() == set(ARCHITECTURE_FIELDS):
        counts: ModelCounts | None = model_counts(Architecture(**model))
    else:
        counts = checkpoints.get(canonical(model))
    if counts is None:
        return _Model(0, 0, model_text(recipe), None)
    return _Model(counts.flops_per_token(recipe["sequence_length"]), counts.parameters, model_text(recipe), counts)


def _with_adapters(model: _Model, recipe: Mapping[str, Any]) -> _Work:
    """The work of training adapters, which ends with the merged model.

    A frozen matrix needs no gradient of its own, so it takes 4 FLOPs per parameter instead of 6. An adapter on a tied head
    unties the head.
    """
    counts = model.counts
    assert counts is not None
    lora = recipe["lora"]
    adapters = counts.adapter_parameters(lora["rank"], lora["targets"])
    flops = model.flops - 2 * counts.matrices + 6 * adapters
    if counts.tied and HEAD in lora["targets"]:
        counts = replace(counts, parameters=counts.parameters + counts.head, tied=False)
    return _Work(flops, adapters, replace(model, parameters=counts.parameters, counts=counts))
