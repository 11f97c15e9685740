"""The training speeds that the done runs of a store have measured."""

import contextlib
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from retain.results.store.runs import Run, Store
from retain.results.store.state import StateSummary
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.throughput import Measured, device_of, model_text, work_of

CACHE = Path("cache") / "speeds.json"
"""The speeds of done runs, by key. It may be deleted at any time."""
WORTH_KEEPING = 500
"""The number of done runs that the cache must lack before it is written again."""


class _Group(NamedTuple):
    """What runs have in common whose speeds are comparable."""

    stage: str
    model: str
    work: str
    world: int
    device: str | None


class _CachedGroup(TypedDict):
    """A group with the speeds of its done runs (tokens per second), by key."""

    stage: str
    model: str
    work: str
    world: int
    device: str | None
    speeds: dict[str, float]


class _Cache(TypedDict):
    """The content of the cache."""

    groups: list[_CachedGroup]
    without: list[str]
    """The keys of done runs that have measured no speed."""


Speeds = dict[_Group | None, dict[str, float]]
"""The speeds of done runs by group and key; None is the group of those that have measured none."""


def measured_speeds(store: Store, states: Mapping[str, StateSummary] | None = None) -> Measured:
    """The median speed (tokens per second) of done runs by stage, model, work, number of devices, and device (None: any).

    states: the states of some runs, as far as they have been read already.
    """
    given = states or {}
    undone = {key for key, state in given.items() if state.state != "done"}
    cached = _read_cache(store)
    group_of = {key: group for group, speeds in cached.items() for key in speeds}
    models: dict[str, str | None] = {}
    runs = store.read_all(lambda run: _measured(store, run, given.get(run.key), models), but=group_of.keys() | undone)
    known: Speeds = {}
    # The cache is in the store, so a store with a cache is there.
    for key in group_of.keys() & set(os.listdir(store.root) if group_of else ()):
        known.setdefault(group_of[key], {})[key] = cached[group_of[key]][key]
    new = {key: measured for key, measured in runs.items() if measured is not None}
    for key, (group, speed) in new.items():
        known.setdefault(group, {})[key] = speed
    if len(new) >= WORTH_KEEPING:
        _write_cache(store, known)
    found: dict[tuple[str, str, str, int, str | None], list[float]] = {}
    for group, speeds in known.items():
        if group is not None:
            for device in {None, device_of(group.device or "")}:
                found.setdefault((*group[:4], device), []).extend(speeds.values())
    medians = {group: statistics.median(speeds) for group, speeds in found.items()}
    return lambda stage, model, work, devices, device: medians.get((stage, model, work, devices, device))


def _read_cache(store: Store) -> Speeds:
    """The cached speeds. A done run's speed changes only if the run is trained again, and then by little."""
    try:
        cache = read_document(store.root / CACHE, _Cache, "")
    except (FileNotFoundError, DamageError):  # the runs are read again
        return {}
    found: Speeds = {None: dict.fromkeys(cache["without"], 0.0)}
    for one in cache["groups"]:
        found[_Group(one["stage"], one["model"], one["work"], one["world"], one["device"])] = one["speeds"]
    return found


def _write_cache(store: Store, known: Speeds) -> None:
    groups = [{**group._asdict(), "speeds": speeds} for group, speeds in known.items() if group is not None]
    with contextlib.suppress(OSError):  # a store that may only be read
        os.makedirs(store.root / CACHE.parent, exist_ok=True)
        write_document(store.root / CACHE, {"groups": groups, "without": list(known.get(None, ()))})


def _measured(
    store: Store, run: Run, state: StateSummary | None, models: dict[str, str | None]
) -> tuple[_Group | None, float] | None:
    """The group of a done run and its speed; None if the run is not done.

    state: that of the run, if it has been read already. models: as in `_model`.
    """
    state = state or run.state()
    if state.state != "done":
        return None
    if not state.attempts or not state.progress.tokens_per_second:
        return None, 0.0
    spec, last = run.spec(), state.attempts[-1]
    model = _model(run.key, spec, store, models)
    if model is None:
        return None, 0.0
    group = _Group(stage_name(spec), model, work_of(spec["recipe"]), last.world, last.device)
    return group, state.progress.tokens_per_second


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
