"""The losses that studies of other papers compare: those after the last stage, by what the trials differ in and by seed."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import numpy as np

from retain.results.analysis.axes import grouped, seed_of
from retain.results.store.loss_table import Row, chain_of

GENERAL, TARGET = "general", "target"
"""The names that the corpora of such a study have: that of pretraining, and that which is to be learned."""

Point = TypeVar("Point", bound=Hashable)


def losses_at(rows: Iterable[Row], corpus: str, point: Callable[[Row], Point | None]) -> dict[Point, dict[int, float]]:
    """The loss on a corpus after the last stage (nats per token), by point and seed; a point without results is empty.

    A study without a corpus of this name has no points. point: what a trial is compared by; None leaves the trial out. Trials
    of one point and seed are averaged.
    """
    found: dict[Point, list[tuple[int, float]]] = {}
    for row in rows:
        at, losses = point(row), row.get("losses", {}).get(chain_of(row)[-1], {})
        if at is not None and corpus in losses:
            values, loss = found.setdefault(at, []), losses[corpus]
            if loss is not None and math.isfinite(loss):
                values.append((seed_of(row), float(loss)))
    return {
        at: {
            seed: float(np.mean([loss for _, loss in own]))
            for seed, own in sorted(grouped(pairs, itemgetter(0)).items())
        }
        for at, pairs in found.items()
    }


def mean_of(each: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values of each seed, for the seeds that have all of them; empty without any value."""
    seeds = sorted(set.intersection(*(set(one) for one in each))) if each else []
    return {seed: float(np.mean([one[seed] for one in each])) for seed in seeds}


def slope_of(x: Sequence[float], curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The slope of the least-squares line through the values of each seed, for the seeds that have a value at every x."""
    if len(curves) < 2:
        return {}
    centred = np.array(x, dtype=np.float64) - np.mean(x)
    seeds = sorted(set.intersection(*(set(one) for one in curves)))
    return {seed: float(centred @ np.array([one[seed] for one in curves]) / (centred @ centred)) for seed in seeds}
