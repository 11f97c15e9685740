"""The median frontier of a method over seeds, with a bootstrap band."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retain.results.analysis.frontiers import pareto_set
from retain.results.analysis.loss_planes import Floats, Points


@dataclass(frozen=True)
class Band:
    """A falling staircase: y is median[i] from x[i] up to x[i + 1] (matplotlib's `steps-post`).

    All arrays are [n], in nats per token. low and high are nan with one seed. high is inf at an x where fewer than half of
    the drawn seeds attain any y.
    """

    x: Floats
    median: Floats
    low: Floats
    high: Floats


def attainment_band(by_seed: Mapping[int, Points], draws: int = 1000) -> Band:
    """The median attainment of a method over seeds, with a pointwise 95% bootstrap band.

    by_seed: the points of each seed's checkpoints, [n, 2]. A seed attains (x, y) if one of its checkpoints is at least as
    good on both axes. The median at x is the lowest y that at least half of the seeds attain (the empirical attainment
    function at 50%, Grunert da Fonseca et al. 2001), given at each x where a seed's frontier steps. The band holds the 2.5%
    and 97.5% quantiles of that median over `draws` resamples of the seeds. It cannot be wider than the
    spread of the seeds: with three seeds it is about their range, too narrow for a 95% interval. To compare methods, use
    `retain.results.analysis.effects`.
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
    chosen = np.random.default_rng(0).integers(len(fronts), size=(draws, len(fronts)))
    medians = np.stack([_median(attained[draw]) for draw in chosen])
    # No interpolation: a value between a number and inf is undefined.
    low, high = np.quantile(medians, [0.025, 0.975], axis=0, method="inverted_cdf")
    return Band(x, median, low, high)


def _attained(front: Points, x: Floats) -> Floats:
    """The lowest y of a Pareto set at each x; inf left of it."""
    return np.append(np.inf, front[:, 1])[np.searchsorted(front[:, 0], x, side="right")]


def _median(attained: Floats) -> Floats:
    """The lowest y that at least half of the rows ([seeds, n]) attain."""
    half = (len(attained) + 1) // 2
    return np.asarray(np.sort(attained, axis=0)[half - 1], dtype=np.float64)
