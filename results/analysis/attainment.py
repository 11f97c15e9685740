"""What most seeds attain: the median frontier of a method, and how sure its place is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.frontiers import pareto_set
from retain.results.analysis.methods import Points

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A falling staircase: from x[i] on, up to x[i + 1], y is median[i] (matplotlib's `steps-post`).

    All are [n], in nats per token. low and high are nan with one seed; high is inf where fewer than half of the seeds
    may attain anything at that x.
    """

    x: Values
    median: Values
    low: Values
    high: Values


def attainment_band(by_seed: Mapping[int, Points], draws: int = 1000, seed: int = 0) -> Band:
    """The median attainment of a method over seeds, with a 95% band.

    by_seed: for each seed the points of its checkpoints, [n, 2]. A seed attains (x, y) where one of its checkpoints is
    at least as good on both axes; the median is the lowest y that at least half of the seeds attain at x (the empirical
    attainment function at 50%, Grunert da Fonseca et al. 2001), at each x where a seed's frontier steps. The band holds
    at each x the 2.5% and 97.5% quantiles of that median over `draws` sets of seeds drawn with replacement (`seed`
    fixes them): pointwise, not for the whole line at once. It can only be as wide as the seeds lie apart, so with
    three of them it is about their range and too narrow for a 95% interval; differences of methods are judged by
    `retain.results.analysis.effects`. With one seed the band is absent: low and high are nan.
    """
    fronts = [front for front in map(pareto_set, by_seed.values()) if len(front)]
    if not fronts:
        return Band(*(np.empty(0) for _ in range(4)))
    x = np.unique(np.concatenate([front[:, 0] for front in fronts]))
    attained = np.stack([_attained(front, x) for front in fronts])
    median = _median(attained)
    reached = np.isfinite(median)
    x, attained, median = x[reached], attained[:, reached], median[reached]
    if len(fronts) == 1:
        return Band(x, median, np.full(len(x), np.nan), np.full(len(x), np.nan))
    chosen = np.random.default_rng(seed).integers(len(fronts), size=(draws, len(fronts)))
    medians = np.stack([_median(attained[draw]) for draw in chosen])
    # Without interpolation: between a number and inf there is nothing.
    low, high = np.quantile(medians, [0.025, 0.975], axis=0, method="inverted_cdf")
    return Band(x, median, low, high)


def _attained(front: Points, x: Values) -> Values:
    """The lowest y of a Pareto set at each x; inf left of it."""
    return np.append(np.inf, front[:, 1])[np.searchsorted(front[:, 0], x, side="right")]


def _median(attained: Values) -> Values:
    """The lowest y that at least half of the rows ([seeds, n]) attain."""
    half = (len(attained) + 1) // 2
    return np.asarray(np.sort(attained, axis=0)[half - 1], dtype=np.float64)
