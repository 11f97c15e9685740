"""The training speeds that a store's done runs have measured."""

import statistics
from collections.abc import Mapping
from typing import Any

from results.store import Store
from sweeps.speed import Measured, device_of, model_text


def measured_speeds(store: Store) -> Measured:
    """The median speed of the done runs of one kind, model and number of devices, on one kind of device or on any."""
    specs = {run.key: run.spec() for run in store.runs()}
    found: dict[tuple[str, str, int, str | None], list[float]] = {}
    for key, spec in specs.items():
        root = _root(spec, specs)
        state = store.run(key).state()
        if root is None or state.state != "done" or not state.attempts or not state.progress.tokens_per_second:
            continue
        last = state.attempts[-1]
        for device in {None, device_of(last.device or "")}:
            kind = (spec["stage"], model_text(root["recipe"]), last.world, device)
            found.setdefault(kind, []).append(state.progress.tokens_per_second)
    medians = {kind: statistics.median(speeds) for kind, speeds in found.items()}
    return lambda stage, model, devices, device: medians.get((stage, model, devices, device))


def _root(spec: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The pretraining above a run; None where the store lacks a run on the way."""
    above: Mapping[str, Any] | None = spec
    while above is not None and above["parent"] is not None:
        above = specs.get(above["parent"])
    return above
