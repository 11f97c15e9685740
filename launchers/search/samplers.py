"""Which point to try next: a function of the space and of what earlier points gave, with no state of its own.

Ray Tune's wrapper of Optuna (OptunaSearch) is not used: it takes one number for each earlier point, so neither the losses of a
frontier, nor constraints, nor which points are still being trained. Optuna itself takes all of them.
"""

import hashlib
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retain.results.store.study_files import PointState
from retain.sweeps.schema.search_space import Axis, SearchSpace, Values

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 24
"""Draws of a point that has not been tried yet, before the space counts as used up."""
STARTING_POINTS = 10
"""The number of random points before TPE follows its model."""
POPULATION = 16
"""The number of parents of NSGA-II, and of random points before it has them."""
MUTATION = 0.1
"""The probability with which NSGA-II draws an axis from its whole range."""


@dataclass(frozen=True)
class Outcome:
    """An earlier point, as a searcher sees it: lower scores are better, violations above 0 break a constraint."""

    values: Values
    state: PointState
    scores: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()


def propose(space: SearchSpace, outcomes: Sequence[Outcome], fixed: Values) -> Values | None:
    """A new point with some axes fixed; None if none is left. The same arguments give the same point."""
    tried = [outcome.values for outcome in outcomes]
    searcher = space.block.searcher
    countable = searcher == "grid" or all(axis.choices is not None for axis in space.axes)
    points = space.grid() if countable else iter(())
    untried = (point for point in points if point not in tried and fixed.items() <= point.items())
    for attempt in range(ATTEMPTS if searcher != "grid" else 0):
        seed = _number(space.block.seed, len(tried), attempt)
        # A model that keeps proposing known points is no longer followed.
        if searcher == "random" or attempt >= ATTEMPTS // 2:
            draw = random.Random(seed)
            point = {axis.path: axis.at(draw.random()) for axis in space.axes} | fixed
        else:
            point = _by_optuna(space, outcomes, fixed, seed)
        if point not in tried:
            return point
    return next(untried, None)


def _number(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _by_optuna(space: SearchSpace, outcomes: Sequence[Outcome], fixed: Values, seed: int) -> Values:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    frontier = space.block.objective.hypervolume is not None
    distributions = {axis.path: _distribution(axis) for axis in space.axes}
    held = {axis.path: _encoded(axis, fixed[axis.path]) for axis in space.axes if axis.path in fixed}
    sampler = optuna.samplers.PartialFixedSampler(held, _sampler(space, seed))
    study = optuna.create_study(directions=["minimize"] * (2 if frontier else 1), sampler=sampler)
    for outcome in outcomes:
        if all(axis.path in outcome.values and axis.holds(outcome.values[axis.path]) for axis in space.axes):
            study.add_trial(_as_trial(space.axes, outcome, distributions, frontier))
    found = study.ask(distributions).params
    return {axis.path: _decoded(axis, found[axis.path]) for axis in space.axes} | fixed


def _sampler(space: SearchSpace, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if space.block.searcher == "nsga2":
        # Optuna's default children only have values of their parents, and half of them one value drawn from the whole range.
        # Steps of Deb's polynomial mutation are so small that few points stay where the first ones were good.
        return optuna.samplers.NSGAIISampler(
            seed=seed,
            population_size=min(POPULATION, max(4, space.block.trials // 4)),
            crossover=optuna.samplers.nsgaii.BLXAlphaCrossover(),
            mutation_prob=MUTATION,
        )
    return optuna.samplers.TPESampler(
        seed=seed,
        multivariate=True,
        constant_liar=True,
        n_startup_trials=min(STARTING_POINTS, max(2, space.block.trials // 4)),
    )


def _as_trial(
    axes: Sequence[Axis], outcome: Outcome, distributions: dict[str, Any], frontier: bool
) -> "optuna.trial.FrozenTrial":
    """An earlier point as Optuna represents it."""
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState, create_trial

    # Samplers for several objectives reject pruned trials.
    pruned = TrialState.FAIL if frontier else TrialState.PRUNED
    states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": pruned}
    done = outcome.state == "done"
    return create_trial(
        state=states.get(outcome.state, TrialState.RUNNING),
        params={axis.path: _encoded(axis, outcome.values[axis.path]) for axis in axes},
        distributions=distributions,
        values=list(outcome.scores) if done else None,
        constraints={str(number): broken for number, broken in enumerate(outcome.violations)} if done else None,
        # NSGA-II takes its parents from trials with the mark of an earlier generation. All trials get the same mark, so its
        # parents are the best of all done points, in whatever order points end.
        system_attrs={NSGAIISampler._get_generation_key(): 0},
    )


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices is not None:
        return CategoricalDistribution(range(len(axis.choices)))
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _encoded(axis: Axis, value: Any) -> Any:
    """The number of a choice, as Optuna takes plain values only and a choice may be a list; other values as they are."""
    return axis.choices.index(value) if axis.choices is not None else value


def _decoded(axis: Axis, value: Any) -> Any:
    return axis.choices[value] if axis.choices is not None else axis.rounded(value)
