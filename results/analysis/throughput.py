"""The training speeds that the done runs of a store have measured."""

import functools
import statistics
from typing import Any

from retain.results.store.runs import Store
from retain.sweeps.tree.throughput import Measured, device_of, model_text


def measured_speeds(store: Store) -> Measured:
    """The median speed (tokens per second) of done runs by stage, model, number of devices, and device (None: any)."""

    @functools.cache
    def spec_of(key: str) -> dict[str, Any]:
        return store.run(key).spec()

    def model_of(spec: dict[str, Any]) -> str | None:
        """The model that a run trains, from its pretraining; None if the store lacks a run in between."""
        try:
            while spec["parent"]:
                spec = spec_of(spec["parent"])
        except FileNotFoundError:
            return None
        return model_text(spec["recipe"])

    found: dict[tuple[str, str, int, str | None], list[float]] = {}
    for run in store.runs():
        state = run.state()
        if state.state != "done" or not state.attempts or not state.progress.tokens_per_second:
            continue
        spec, last = spec_of(run.key), state.attempts[-1]
        model = model_of(spec)
        if model is None:
            continue
        for device in {None, device_of(last.device or "")}:
            group = (spec["stage"], model, last.world, device)
            found.setdefault(group, []).append(state.progress.tokens_per_second)
    medians = {group: statistics.median(speeds) for group, speeds in found.items()}
    return lambda stage, model, devices, device: medians.get((stage, model, devices, device))
