"""The losses that studies of other papers compare: those after the last stage, by what the trials differ in and by seed."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import numpy as np

from retain.results.analysis.axes import grouped, repetitions, seed_of
from retain.results.analysis.effects import least_squares_slope
from retain.results.store.loss_table import Row, chain_of

GENERAL, TARGET = "general", "target"
"""The names that the corpora of such a study have: that of pretraining, and that which is to be learned."""

Point = TypeVar("Point", bound=Hashable)


def losses_at(rows: Iterable[Row], corpus: str, point: Callable[[Row], Point | None]) -> dict[Point, dict[int, float]]:
    """The loss on a corpus after the last stage (nats per token), by point and seed; a point without results is empty.

    A study without a corpus of this name has no points. point: what a trial is compared by; None leaves the trial out. Trials
    of one point and seed are averaged, and so are seeds that share the compared runs.
    """
    measured = grouped((row for row in rows if corpus in row.get("losses", {}).get(chain_of(row)[-1], {})), point)
    by_point = {at: own for at, own in measured.items() if at is not None}
    repetition = repetitions(list(by_point.values()))
    found: dict[Point, dict[int, float]] = {}
    for at, own in by_point.items():
        losses = [(seed_of(row), row["losses"][chain_of(row)[-1]][corpus]) for row in own]
        finite = [(seed, float(loss)) for seed, loss in losses if loss is not None and math.isfinite(loss)]
        found[at] = over_seeds(finite, repetition)
    return found


def over_seeds(values: Iterable[tuple[int, float]], repetition: Mapping[int, int]) -> dict[int, float]:
    """The mean of the values of each seed, and then of the seeds of one repetition. repetition: as in `axes.repetitions`."""
    by_seed = {
        seed: float(np.mean([one for _, one in own])) for seed, own in sorted(grouped(values, itemgetter(0)).items())
    }
    apart = grouped(by_seed, repetition.__getitem__)
    return {one: float(np.mean([by_seed[seed] for seed in own])) for one, own in apart.items()}


def mean_of(each: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several values of each seed, for the seeds that have all of them; empty without any value."""
    seeds = sorted(set.intersection(*(set(one) for one in each))) if each else []
    return {seed: float(np.mean([one[seed] for one in each])) for seed in seeds}


def slope_of(x: Sequence[float], curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The slope of the least-squares line through the values of each seed, for the seeds that have a value at every x."""
    if len(curves) < 2:
        return {}
    seeds = sorted(set.intersection(*(set(one) for one in curves)))
    along = np.array(x, dtype=np.float64)
    return {seed: least_squares_slope(along, np.array([one[seed] for one in curves])) for seed in seeds}
