"""The training speeds that a store's done runs have measured."""

import statistics
from collections.abc import Mapping
from typing import Any

from retain.results.store.runs import Store
from retain.sweeps.tree.throughput import Measured, device_of, model_text


def measured_speeds(store: Store) -> Measured:
    """The median speed of the done runs of one kind, model and number of devices, on one kind of device or on any."""
    models: dict[str, str | None] = {}
    found: dict[tuple[str, str, int, str | None], list[float]] = {}
    for run in store.runs():
        state = run.state()
        if state.state != "done" or not state.attempts or not state.progress.tokens_per_second:
            continue
        spec = run.spec()
        model = _model(run.key, spec, store, models)
        if model is None:
            continue
        last = state.attempts[-1]
        for device in {None, device_of(last.device or "")}:
            kind = (spec["stage"], model, last.world, device)
            found.setdefault(kind, []).append(state.progress.tokens_per_second)
    medians = {kind: statistics.median(speeds) for kind, speeds in found.items()}
    return lambda stage, model, devices, device: medians.get((stage, model, devices, device))


def _model(key: str, spec: Mapping[str, Any], store: Store, models: dict[str, str | None]) -> str | None:
    """The model that a run trains, which its pretraining says; None where the store lacks a run on the way.

    models: those found so far, by key.
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
            except FileNotFoundError:
                models[key] = None
    return models[key]
