"""How much two methods differ: effects paired by seed, each with a 95% interval.

The seed is the unit of repetition. Both methods share data order and initialisation at one seed, so the difference is
taken within each seed first. Intervals are Student's t over these differences. At two to ten seeds a percentile bootstrap
is much too narrow: at three seeds it cannot reach beyond the extreme seeds and covers about 75% instead of 95%. Student's t
is exact for normal differences, and wide at two seeds: 12.7 standard errors to each side.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import numpy.typing as npt

from retain.results.analysis.axes import grouped
from retain.results.analysis.frontiers import height_at, hypervolume, lower_left_hull, pareto_set
from retain.results.analysis.loss_planes import Floats, Points
from retain.sweeps.base.units import counted

LEVEL = 0.95
SIDE = (1 - LEVEL) / 2
"""The error rate to each side of an interval."""
MOST_DECIMALS = 8
"""Values that need more decimals, or have more digits before the point, are written with an exponent."""


@dataclass(frozen=True)
class Effect:
    """A mean difference with its 95% interval; with one seed low and high are nan, with none the mean too."""

    mean: float
    low: float
    high: float
    seeds: int
    """The number of seeds that counted."""
    per_seed: dict[int, float]
    """The difference at each seed that counted."""
    level: float = LEVEL
    """The level of the interval; higher where one of several looks at growing results decides."""

    def __neg__(self) -> "Effect":
        """The effect in the other direction."""
        per_seed = {seed: -value for seed, value in self.per_seed.items()}
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low, per_seed=per_seed)

    @property
    def sample(self) -> str:
        """The number of seeds as text: `3 seeds`."""
        return counted(self.seeds, "seed")

    @property
    def written(self) -> str:
        """The mean as text, with as many decimals as the interval: `+0.012`."""
        return self._text(self.mean)

    @property
    def interval(self) -> str:
        """The interval as text: `-0.001 to +0.026`; empty with fewer than two seeds."""
        return "" if self.seeds < 2 else f"{self._text(self.low)} to {self._text(self.high)}"

    @property
    def interval_in_words(self) -> str:
        """The interval with its level: `95% interval -0.001 to +0.026`, or `no interval`."""
        return f"{level_text(self.level)} interval {self.interval}" if self.interval else "no interval"

    def __str__(self) -> str:
        """The effect as text: `+0.012, 95% interval -0.001 to +0.026`."""
        return f"{self.written}, {self.interval_in_words}" if self.seeds else "no value yet"

    def _text(self, value: float) -> str:
        """A value to two digits of half the interval, and to one digit of its ends, so that none reads as 0."""
        reach = (self.high - self.low) / 2
        if not reach > 0:  # no interval, or none of any width
            wanted = [_decimals(self.mean, 3)]
        else:
            wanted = [_decimals(reach, 2), *(_decimals(end, 1) for end in (self.low, self.high))]
        decimals = max(0, *wanted)
        if decimals > MOST_DECIMALS or not abs(value) < 10**MOST_DECIMALS:
            return f"{value:+.3g}"
        return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # + 0.0 makes -0.0 positive


def _decimals(value: float, digits: int) -> int:
    """The decimals that show a number of significant digits of a value; 0 for a value of 0 or none."""
    return digits - 1 - int(np.floor(np.log10(abs(value)))) if value and np.isfinite(value) else 0


def level_text(level: float) -> str:
    """The level of an interval as a percentage with the digits that tell it from others: `95%`, `99.1%`, `99.97%`."""
    digits = next(digits for digits in range(8) if (1 - level) * 10 ** (digits + 2) >= 3)
    return f"{100 * level:.{digits}f}%"


def effect_of(per_seed: Mapping[int, float], level: float = LEVEL) -> Effect:
    """The mean over seeds of one value each, with the interval of Student's t at a level."""
    from scipy.special import stdtrit

    values = np.array(list(per_seed.values()), dtype=np.float64)
    count = len(values)
    mean = float(values.mean()) if count else np.nan
    if count < 2:
        return Effect(mean, np.nan, np.nan, count, dict(per_seed), level)
    reach = float(stdtrit(count - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(count))
    return Effect(mean, mean - reach, mean + reach, count, dict(per_seed), level)


def tail(effect: Effect) -> float:
    """The one-sided p-value of Student's t for a mean above 0; nan with fewer than two seeds.

    It is below 0.025 if and only if the 95% interval lies above 0.
    """
    values = np.array(list(effect.per_seed.values()), dtype=np.float64)
    if len(values) < 2:
        return np.nan
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    if error == 0:
        return 0.0 if effect.mean > 0 else 1.0
    return float(tails(np.array(effect.mean / error), len(values) - 1))


def tails(t: npt.NDArray[np.float64], freedom: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The chance of a larger t than each of these, for Student's t with these degrees of freedom."""
    from scipy.special import stdtr

    return np.asarray(stdtr(freedom, -t), dtype=np.float64)


def over_repetitions(effect: Effect, repetition: Mapping[int, int]) -> Effect:
    """The effect with the seeds of one repetition averaged. repetition: that of each seed, as in `axes.repetitions`."""
    by_repetition = grouped(effect.per_seed, lambda seed: repetition.get(seed, seed))
    if len(by_repetition) == effect.seeds:
        return effect
    return effect_of(
        {one: fmean(effect.per_seed[seed] for seed in own) for one, own in by_repetition.items()}, effect.level
    )


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Effect:
    """The effect b − a over the seeds that both have."""
    return effect_of({seed: b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())})


def least_squares_slope(x: Floats, y: Floats) -> float:
    """The slope of the least-squares line through points with these coordinates, [n] each; exactly 0 where all y are equal."""
    centred = x - x.mean()
    return float(centred @ (y - y[0]) / (centred @ centred))


def frontier_gap(a_by_seed: Mapping[int, Points], b_by_seed: Mapping[int, Points]) -> Effect:
    """The vertical gap b − a between two hulls at equal x, averaged over the x that both cover, in nats; below 0 b is better.

    The average is exact, because both hulls are straight between vertices. Seeds whose hulls share no x are left out. A hull
    ends where its lowest y is, so a much better method may share no x with another; `hypervolume_gain` still compares them.
    """
    gaps = {
        seed: _mean_gap(lower_left_hull(a_by_seed[seed]), lower_left_hull(b_by_seed[seed]))
        for seed in sorted(a_by_seed.keys() & b_by_seed.keys())
    }
    return effect_of({seed: gap for seed, gap in gaps.items() if gap is not None})


def hypervolume_gain(
    a_by_seed: Mapping[int, Points], b_by_seed: Mapping[int, Points], reference: npt.ArrayLike | None = None
) -> Effect:
    """The hypervolume of b minus that of a, in squared nats; above 0 b is better.

    reference: [2], the same for all seeds; `worst_of` both methods by default.
    """
    if reference is None:
        reference = worst_of(a_by_seed, b_by_seed)
    a, b = (
        {seed: hypervolume(points, reference) for seed, points in by_seed.items()} for by_seed in (a_by_seed, b_by_seed)
    )
    return paired_difference(a, b)


def worst_of(*methods: Mapping[int, Points]) -> npt.NDArray[np.float64]:
    """The worst value on each axis, [2], over the Pareto sets of all seeds of all methods, without stray checkpoints.

    Stray checkpoints would stretch the plane until its area measures little else. Raises ValueError if there is no point.
    """
    checkpoints = [(seed, points) for by_seed in methods for seed, points in by_seed.items() if len(points)]
    if not checkpoints:
        raise ValueError("no checkpoint to take the reference point from")
    fronts = np.concatenate([pareto_set(points) for _, points in checkpoints])
    ends = [worst_but_strays([(seed, points[:, axis]) for seed, points in checkpoints]) for axis in (0, 1)]
    return np.array([values[values <= end].max() for values, end in zip(fronts.T, ends, strict=True)])


def worst_but_strays(checkpoints: Sequence[tuple[int, Floats]]) -> float:
    """The worst value on one axis over all methods and seeds, without stray checkpoints, as of a run that nearly diverged.

    checkpoints: the values of each method at each seed, with the seed. Stray values are farther above all others than these
    are apart. They are of at most half of the seeds, and no method has only such values at a seed: otherwise they are a
    finding. Where all others are equal, as accuracies may be, nothing says how far is far.
    """
    values = np.unique(np.concatenate([own for _, own in checkpoints]))
    on_all, seeds = max(own.min() for _, own in checkpoints), {seed for seed, _ in checkpoints}
    for worst, stray in itertools.pairwise(values):
        if worst >= on_all and stray - worst > worst - values[0] > 0:
            strayed = {seed for seed, own in checkpoints if own.max() > worst}
            if 2 * len(strayed) <= len(seeds):
                return float(worst)
    return float(values[-1])


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
