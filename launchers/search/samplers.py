"""Which point to try next: a function of the space and of what earlier points gave, with no state of its own.

Ray Tune's wrapper of Optuna (OptunaSearch) is not used: of earlier points it takes one number each, so neither the losses of a
frontier, nor constraints, nor which points are still at work. Optuna itself takes all of them.
"""

import hashlib
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retain.sweeps.schema.search_space import Axis, Search, Values

if TYPE_CHECKING:
    import optuna

ATTEMPTS = 24
"""Draws of a point that is not there yet, before the space counts as used up."""
STARTING_POINTS = 10
"""Random ones, before TPE follows its model."""
POPULATION = 16
"""Of NSGA-II: the parents, and the random points before it has them."""
MUTATION = 0.1
"""How often NSGA-II draws an axis anew from its whole range."""


@dataclass(frozen=True)
class Outcome:
    """What a searcher is told of an earlier point; lower scores are better, violations above 0 break a constraint."""

    values: Values
    state: Literal["done", "open", "pruned", "failed"]
    scores: tuple[float, ...] = ()
    violations: tuple[float, ...] = ()


def propose(search: Search, outcomes: Sequence[Outcome], fixed: Values) -> Values | None:
    """A new point with some axes fixed; None where none is left. The same arguments give the same point."""
    tried = [outcome.values for outcome in outcomes]
    if search.block.searcher == "grid":
        return next((point for point in search.grid() if point not in tried and _matches(point, fixed)), None)
    for attempt in range(ATTEMPTS):
        seed = _number(search.block.seed, len(tried), attempt)
        # A model that proposes what is known already is followed no further.
        if search.block.searcher == "random" or attempt >= ATTEMPTS // 2:
            draw = random.Random(seed)
            point = {axis.path: axis.at(draw.random()) for axis in search.axes} | fixed
        else:
            point = _by_optuna(search, outcomes, fixed, seed)
        if point not in tried:
            return point
    return next((point for point in _all_points(search) if point not in tried and _matches(point, fixed)), None)


def _all_points(search: Search) -> list[Values]:
    """Every point of a space of choices; none of a space with ranges, which has no end."""
    return search.grid() if all(axis.choices is not None for axis in search.axes) else []


def _matches(point: Values, fixed: Values) -> bool:
    return all(point[path] == value for path, value in fixed.items())


def _number(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _by_optuna(search: Search, outcomes: Sequence[Outcome], fixed: Values, seed: int) -> Values:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    frontier = search.block.objective.hypervolume is not None
    distributions = {axis.path: _distribution(axis) for axis in search.axes}
    held = {axis.path: _encoded(axis, fixed[axis.path]) for axis in search.axes if axis.path in fixed}
    sampler = optuna.samplers.PartialFixedSampler(held, _sampler(search, seed))
    study = optuna.create_study(directions=["minimize"] * (2 if frontier else 1), sampler=sampler)
    for outcome in outcomes:
        if all(axis.path in outcome.values and axis.holds(outcome.values[axis.path]) for axis in search.axes):
            study.add_trial(_as_trial(search.axes, outcome, distributions, frontier))
    found = study.ask(distributions).params
    return {axis.path: _decoded(axis, found[axis.path]) for axis in search.axes} | fixed


def _sampler(search: Search, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if search.block.searcher == "nsga2":
        # By Optuna's default children have values of their parents only, and half of them one that is drawn anew; steps of
        # Deb's polynomial mutation are so small that few points stay where the first ones were good.
        return optuna.samplers.NSGAIISampler(
            seed=seed,
            population_size=min(POPULATION, max(4, search.block.trials // 4)),
            crossover=optuna.samplers.nsgaii.BLXAlphaCrossover(),
            mutation_prob=MUTATION,
        )
    return optuna.samplers.TPESampler(
        seed=seed,
        multivariate=True,
        constant_liar=True,
        n_startup_trials=min(STARTING_POINTS, max(2, search.block.trials // 4)),
    )


def _as_trial(
    axes: Sequence[Axis], outcome: Outcome, distributions: dict[str, Any], frontier: bool
) -> "optuna.trial.FrozenTrial":
    """An earlier point as Optuna knows one."""
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState, create_trial

    states = {"done": TrialState.COMPLETE, "open": TrialState.RUNNING, "failed": TrialState.FAIL}
    # A frontier's searchers take no pruned trials.
    state = states.get(outcome.state, TrialState.FAIL if frontier else TrialState.PRUNED)
    done = outcome.state == "done"
    return create_trial(
        state=state,
        params={axis.path: _encoded(axis, outcome.values[axis.path]) for axis in axes},
        distributions=distributions,
        values=list(outcome.scores) if done else None,
        constraints={str(number): broken for number, broken in enumerate(outcome.violations)} if done else None,
        # NSGA-II takes as parents what bears the mark of an earlier generation. All are one: its parents are then the best of
        # all that is done, in whatever order points end.
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
    """Choices by their number: Optuna takes plain values only, and a choice may be a list."""
    return axis.choices.index(value) if axis.choices is not None else value


def _decoded(axis: Axis, value: Any) -> Any:
    return axis.choices[value] if axis.choices is not None else axis.rounded(value)
