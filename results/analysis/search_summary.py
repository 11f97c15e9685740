"""The result of a search: the points to recommend, their losses over seeds, and the importance of each axis."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.results.analysis.axes import grouped, seed_of
from retain.results.analysis.effects import effect_of
from retain.results.analysis.frontiers import hypervolume, pareto_set
from retain.results.store.loss_table import Row, loss_at
from retain.sweeps.schema.search_space import SearchSpace, Values
from retain.sweeps.schema.section import LOSSES

DRAWS = 200
"""The number of bootstrap samples for an interval of importance."""
FEWEST = 8
"""The fewest points for which importances are computed."""


@dataclass(frozen=True)
class Estimate:
    """The mean of a loss over seeds and its 95% interval by Student's t, in nats per token; None with one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Result:
    """A finished point: its losses over seeds, and the scores that the search minimises."""

    label: str
    values: Values
    losses: Mapping[str, Estimate]
    scores: tuple[float, ...]

    @property
    def means(self) -> dict[str, float]:
        return {name: estimate.mean for name, estimate in self.losses.items()}


@dataclass(frozen=True)
class Importance:
    """The importance of an axis for the score, with a 95% bootstrap interval; all axes sum to 1."""

    axis: str
    mean: float
    low: float
    high: float


def result_of(label: str, values: Values, rows: Sequence[Row], space: SearchSpace) -> Result | None:
    """The result of a point from the rows of its seeds; None while a loss that the search needs is missing or not finite.

    It has those of the paper's four losses that all rows have, and what the search needs besides.
    """
    by_seed = {seed_of(row): row for row in rows}
    by_name = {
        name: [loss_at(row, name) for row in by_seed.values()]
        for name in dict.fromkeys((*LOSSES, *space.block.losses()))
    }
    losses = {
        name: estimate([one for one in found if one is not None])
        for name, found in by_name.items()
        if found and all(one is not None and math.isfinite(one) for one in found)
    }
    if not losses.keys() >= set(space.block.losses()):
        return None
    scores = space.block.objective.scores({name: one.mean for name, one in losses.items()}, space.higher)
    return Result(label, values, losses, scores)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and the interval of independent repetitions."""
    effect = effect_of(dict(enumerate(values)))
    if effect.seeds < 2:
        return Estimate(effect.mean, None, None, effect.seeds)
    return Estimate(effect.mean, effect.low, effect.high, effect.seeds)


def violations(space: SearchSpace, results: Sequence[Result]) -> list[tuple[float, ...]]:
    """By how much each result breaks each constraint, in its unit; at most 0 if the constraint is met."""
    bounds = space.block.constraints
    values = {name: [result.means[name] for result in results] for name in bounds}
    return [
        tuple(
            constraint.violation(result.means[name], min(values[name]), max(values[name]), name in space.higher)
            for name, constraint in bounds.items()
        )
        for result in results
    ]


def feasible(space: SearchSpace, results: Sequence[Result]) -> list[Result]:
    """The results that satisfy all constraints."""
    broken = violations(space, results)
    return [one for one, parts in zip(results, broken, strict=True) if all(part <= 0 for part in parts)]


def recommended(space: SearchSpace, results: Sequence[Result]) -> list[Result]:
    """The best feasible point, or the points of the frontier by ascending x; empty if no point is feasible."""
    found = feasible(space, results)
    if not found or not space.block.objective.hypervolume:
        return sorted(found, key=lambda one: one.scores)[:1]
    front = {tuple(point) for point in pareto_set([one.scores for one in found]).tolist()}
    kept = {one.scores: one for one in reversed(found) if one.scores in front}
    return [kept[scores] for scores in sorted(kept)]


def best_group(space: SearchSpace, results: Sequence[Result], names: Sequence[str]) -> list[Result]:
    """The best group of points that agree on the axes `names`, such as those of one upstream recipe.

    It is the group of the best feasible point; for a frontier, the group whose feasible points dominate the largest area up
    to the worst losses of all points. Empty if no point is feasible.
    """
    groups = grouped(feasible(space, results), lambda one: repr([one.values.get(name) for name in names])).values()
    if space.block.objective.hypervolume:
        return max(groups, key=lambda group: frontier_area(space, group, worst_of=results) or 0.0, default=[])
    return min(groups, key=lambda group: min(one.scores for one in group), default=[])


def frontier_area(
    space: SearchSpace, results: Sequence[Result], worst_of: Sequence[Result] | None = None
) -> float | None:
    """The area that the feasible results dominate, in squared nats; None for other objectives, or if none is feasible.

    The area reaches up to the worst losses of all the results, or of `worst_of`.
    """
    found = feasible(space, results)
    if not space.block.objective.hypervolume or not found:
        return None
    worst = np.array([one.scores for one in worst_of or results]).max(axis=0)
    return hypervolume(np.array([one.scores for one in found]), worst)


def importances(space: SearchSpace, results: Sequence[Result]) -> list[Importance]:
    """Each axis's importance for the score (PED-ANOVA, Watanabe et al., IJCAI 2023), the greatest first.

    Intervals come from 200 bootstrap samples of the points. For a frontier, the score is the sum of the two losses, each
    scaled to its observed range. Empty if there are fewer than 8 points, or all have the same score.
    """
    axes = [axis for axis in space.axes if len({repr(one.values.get(axis.path)) for one in results}) > 1]
    if len(results) < FEWEST or not axes:
        return []
    scores = _single_scores(results)
    if max(scores) == min(scores):
        return []
    draw = random.Random(0)
    whole = _importance(space, results, scores)
    samples = []
    for _ in range(DRAWS):
        chosen = [draw.randrange(len(results)) for _ in results]
        sample = _importance(space, [results[index] for index in chosen], [scores[index] for index in chosen])
        if sample:
            samples.append(sample)
    made = []
    for axis in axes:
        shares = [sample.get(axis.path, 0.0) for sample in samples] or [math.nan]
        low, high = np.percentile(shares, (2.5, 97.5))
        made.append(Importance(axis.path, whole.get(axis.path, 0.0), float(low), float(high)))
    return sorted(made, key=lambda one: -one.mean)


def _single_scores(results: Sequence[Result]) -> list[float]:
    columns = np.array([one.scores for one in results], dtype=np.float64)
    if columns.shape[1] == 1:
        return [float(score) for score in columns[:, 0]]
    span = np.ptp(columns, axis=0)
    scaled = (columns - columns.min(axis=0)) / np.where(span > 0, span, 1.0)
    return [float(score) for score in scaled.sum(axis=1)]


def _importance(space: SearchSpace, results: Sequence[Result], scores: Sequence[float]) -> dict[str, float]:
    """The importance of each axis; empty if the points do not determine it."""
    import warnings

    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for axis in space.axes:
        if axis.choices is not None:
            distributions[axis.path] = CategoricalDistribution(range(len(axis.choices)))
        else:
            distributions[axis.path] = FloatDistribution(axis.low, axis.high, log=axis.log)
    study = optuna.create_study()
    for one, score in zip(results, scores, strict=True):
        if all(axis.holds(one.values.get(axis.path)) for axis in space.axes):
            params = {
                axis.path: axis.choices.index(one.values[axis.path])
                if axis.choices is not None
                else one.values[axis.path]
                for axis in space.axes
            }
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return {}
    return {name: share for name, share in found.items() if math.isfinite(share)}
