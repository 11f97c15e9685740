"""How much two methods differ: effects paired by seed, each with a 95% interval.

A seed is the unit: both methods of one seed share data order and initialisation, so their difference is taken first.
The intervals are Student's t over those differences. With the usual two to ten seeds a percentile bootstrap would be much
too narrow (at three seeds it cannot reach beyond the extreme ones, and covers about 75% where it says 95%); t is exact
for normal differences, and honest about two seeds, where its interval is 12.7 standard errors wide to each side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.frontiers import height_at, hypervolume, lower_left_hull, pareto_set
from retain.results.analysis.methods import Points

LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """A mean difference with its 95% interval; low and high are nan with one seed, all three with none."""

    mean: float
    low: float
    high: float
    seeds: int
    """How many seeds counted."""
    per_seed: dict[int, float]
    """The difference of each seed that counted."""


def effect_of(per_seed: Mapping[int, float]) -> Effect:
    """The mean of one difference a seed, with the 95% interval of Student's t over seeds."""
    from scipy.special import stdtrit

    values = np.array(list(per_seed.values()), dtype=np.float64)
    count = len(values)
    mean = float(values.mean()) if count else np.nan
    if count < 2:
        return Effect(mean, np.nan, np.nan, count, dict(per_seed))
    reach = float(stdtrit(count - 1, 0.5 + LEVEL / 2) * values.std(ddof=1) / np.sqrt(count))
    return Effect(mean, mean - reach, mean + reach, count, dict(per_seed))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Effect:
    """b less a, over the seeds that both have."""
    return effect_of({seed: b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())})


def frontier_gap(a_by_seed: Mapping[int, Points], b_by_seed: Mapping[int, Points]) -> Effect:
    """The vertical gap (b less a) of two methods' hulls at matched x, averaged over the range of x that both cover, in nats.

    Negative: b is better. The average is exact (both lines are straight between vertices). A seed whose hulls share no x
    is left out; `seeds` says how many counted. Since a hull ends where its lowest y is, a method may be far better and
    share no x with another: then `hypervolume_gain` still tells.
    """
    gaps = {}
    for seed in sorted(a_by_seed.keys() & b_by_seed.keys()):
        gap = _mean_gap(lower_left_hull(a_by_seed[seed]), lower_left_hull(b_by_seed[seed]))
        if gap is not None:
            gaps[seed] = gap
    return effect_of(gaps)


def hypervolume_gain(
    a_by_seed: Mapping[int, Points], b_by_seed: Mapping[int, Points], reference: npt.ArrayLike | None = None
) -> Effect:
    """The hypervolume of b less that of a, in squared nats. Positive: b is better.

    reference: [2], common to all seeds; by default `worst_of` both methods.
    """
    if reference is None:
        reference = worst_of(a_by_seed, b_by_seed)
    a, b = (
        {seed: hypervolume(points, reference) for seed, points in by_seed.items()} for by_seed in (a_by_seed, b_by_seed)
    )
    return paired_difference(a, b)


def worst_of(*methods: Mapping[int, Points]) -> npt.NDArray[np.float64]:
    """The worst value on each axis, [2], over the Pareto sets of all seeds of all methods.

    Dominated checkpoints, such as a run that diverged, do not move it. Raises ValueError where there is no point.
    """
    fronts = [pareto_set(points) for by_seed in methods for points in by_seed.values()]
    if not any(len(front) for front in fronts):
        raise ValueError("there is no checkpoint to take a reference from")
    return np.asarray(np.concatenate(fronts).max(axis=0), dtype=np.float64)


def _mean_gap(a: Points, b: Points) -> float | None:
    if not len(a) or not len(b):
        return None
    first, last = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
    if first > last:
        return None
    x = np.unique(np.concatenate([[first, last], a[:, 0], b[:, 0]]))
    x = x[(x >= first) & (x <= last)]
    gap = height_at(b, x) - height_at(a, x)
    return float(gap[0]) if len(x) == 1 else float(np.trapezoid(gap, x) / (last - first))
