"""The training speeds that the done runs of a store have measured."""

import statistics
from collections.abc import Mapping
from typing import Any

from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.throughput import Measured, device_of, model_text


def measured_speeds(store: Store) -> Measured:
    """The median speed (tokens per second) of done runs by stage, model, number of devices, and device (None: any)."""
    models: dict[str, str | None] = {}
    found: dict[tuple[str, str, int, str | None], list[float]] = {}
    for key, measured in store.read_all(_measured).items():
        if measured is None:
            continue
        spec, state = measured
        model = _model(key, spec, store, models)
        if model is None:
            continue
        last = state.attempts[-1]
        for device in {None, device_of(last.device or "")}:
            group = (stage_name(spec), model, last.world, device)
            found.setdefault(group, []).append(state.progress.tokens_per_second)
    medians = {group: statistics.median(speeds) for group, speeds in found.items()}
    return lambda stage, model, devices, device: medians.get((stage, model, devices, device))


def _measured(run: Run) -> tuple[Mapping[str, Any], State] | None:
    """stage.json and state of a done run that has measured its speed; None of others."""
    state = run.state()
    if state.state != "done" or not state.attempts or not state.progress.tokens_per_second:
        return None
    return run.spec(), state


def _model(key: str, spec: Mapping[str, Any], store: Store, models: dict[str, str | None]) -> str | None:
    """The model that a run trains, from its pretraining; None if the store lacks a run in between.

    models: the models found so far, by key.
    """
    if key not in models:
        parent = spec["parent"]
        if parent is None:
            models[key] = model_text(spec["recipe"])
        elif parent in models:
            models[key] = models[parent]
        else:
            try:
                models[key] = _model(parent, store.run(parent).spec(), store, models)
            except (FileNotFoundError, DamageError):
                models[key] = None
    return models[key]
