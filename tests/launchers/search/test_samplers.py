"""Which point a searcher tries next."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.search.samplers import Outcome, propose
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.search_space import SearchSpace, Values
from tests.studies import tiny_fields

AXES: dict[str, Any] = {
    "pretrain.exposure": {"uniform": [0, 1]},
    "posttrain.warmup": {"integers": [0, 5]},
    "finetune.betas": [[0.9, 0.95], [0.9, 0.99]],
}
PLANE: dict[str, Any] = {
    "pretrain.exposure": {"uniform": [0, 1]},
    "posttrain.dropout": {"uniform": [0, 0.5]},
    "finetune.lr": {"loguniform": [1e-5, 1e-2]},
}
FRONTIER = {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}
SEEDS, POINTS, SIDE_BY_SIDE = 4, 60, 3


def space_of(**block: Any) -> SearchSpace:
    search = check_study(tiny_fields(search=block), Path("tiny.yaml")).search
    assert search is not None
    return search


@pytest.mark.parametrize("searcher", ["random", "grid", "tpe", "nsga2"])
@pytest.mark.parametrize("objective", ["retained_posttraining_loss", FRONTIER])
def test_a_searcher_is_a_function_of_what_was_tried(searcher: str, objective: Any) -> None:
    bound = {"immediate_posttraining_loss": {"within": 0.5}}
    space = space_of(searcher=searcher, objective=objective, axes=AXES, constraints=bound)
    outcomes: list[Outcome] = []
    for number in range(14):
        fixed = {"pretrain.exposure": 0.5} if searcher != "grid" and number % 3 == 2 else {}
        point = propose(space, outcomes, fixed)
        assert point is not None
        assert propose(space, list(outcomes), fixed) == point
        assert point not in [outcome.values for outcome in outcomes]
        assert set(point) == set(AXES)
        assert all(axis.holds(point[axis.path]) for axis in space.axes)
        assert fixed.items() <= point.items()
        scores = (point["pretrain.exposure"], 1 - point["pretrain.exposure"])[: 2 if isinstance(objective, dict) else 1]
        state: Any = ("done", "done", "running", "failed", "pruned")[number % 5]
        outcomes.append(Outcome(point, state, scores if state == "done" else (), (-0.1,)))


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_a_space_of_choices_ends(searcher: str) -> None:
    space = space_of(searcher=searcher, axes={"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]})
    outcomes: list[Outcome] = []
    while (point := propose(space, outcomes, {})) is not None:
        outcomes.append(Outcome(point, "done", (1.0,)))
    assert len(outcomes) == 4


@pytest.mark.parametrize("objective", ["retained_posttraining_loss", FRONTIER])
@pytest.mark.parametrize(("searcher", "heeds"), [("tpe", True), ("nsga2", True), ("random", False)])
def test_losses_decide_what_tpe_and_nsga2_propose(searcher: str, heeds: bool, objective: Any) -> None:
    tried = proposed("random", "retained_posttraining_loss", seed=7, count=30)
    space = space_of(searcher=searcher, objective=objective, axes=PLANE, trials=40)
    scores = [scores_of(outcome.values, objective) for outcome in tried]
    for number in range(20, len(tried)):
        there = [Outcome(one.values, "done", own) for one, own in zip(tried[:number], scores, strict=False)]
        reversed_ = [Outcome(one.values, "done", tuple(-score for score in one.scores)) for one in there]
        assert (propose(space, there, {}) != propose(space, reversed_, {})) == heeds


@pytest.mark.parametrize("objective", ["retained_posttraining_loss", FRONTIER])
@pytest.mark.parametrize("searcher", ["tpe", "nsga2"])
def test_tpe_and_nsga2_end_nearer_to_the_optimum_than_random_points(searcher: str, objective: Any) -> None:
    def distance(kind: str, seed: int) -> float:
        late = proposed(kind, objective, seed, POINTS)[-POINTS // 3 :]
        return statistics.median(from_optimum(one.values, objective) for one in late)

    for seed in range(SEEDS):
        assert distance(searcher, seed) < 0.5 * distance("random", seed)


@pytest.mark.parametrize("searcher", ["tpe", "nsga2"])
def test_tpe_and_nsga2_keep_a_constraint_that_the_losses_push_against(searcher: str) -> None:
    bound = {"immediate_posttraining_loss": {"at_most": 1.0}}

    def feasible(kind: str) -> float:
        searches = (
            proposed(kind, "retained_posttraining_loss", seed, POINTS, 0.6, constraints=bound) for seed in range(SEEDS)
        )
        late = [one for made in searches for one in made[-POINTS // 3 :]]
        return statistics.mean(one.values["pretrain.exposure"] >= 0.6 for one in late)

    assert feasible(searcher) > 0.6 > 0.5 > feasible("random")


def proposed(
    searcher: str, objective: Any, seed: int, count: int, least: float | None = None, **block: Any
) -> list[Outcome]:
    """Points proposed one by one, of which the last few are always at work still; `least`: a bound on the exposure."""
    space = space_of(searcher=searcher, objective=objective, axes=PLANE, trials=count, seed=seed, **block)
    made: list[Outcome] = []
    for _ in range(count):
        there = [*made[:-SIDE_BY_SIDE], *(Outcome(one.values, "running") for one in made[-SIDE_BY_SIDE:])]
        point = propose(space, there, {})
        assert point is not None
        broken = () if least is None else (least - point["pretrain.exposure"],)
        made.append(Outcome(point, "done", scores_of(point, objective), broken))
    return made


def scores_of(point: Values, objective: Any) -> tuple[float, ...]:
    """Of the toy, distances in the unit cube: from one place, or from each of two, the line between which is the front."""
    place = (point["pretrain.exposure"], 2 * point["posttrain.dropout"], math.log10(point["finetune.lr"]) / 3 + 5 / 3)
    targets = [(0.3, 0.2, 0.6), (0.7, 0.2, 0.6)] if objective == FRONTIER else [(0.3, 0.2, 0.6)]
    return tuple(math.dist(place, target) for target in targets)


def from_optimum(point: Values, objective: Any) -> float:
    scores = scores_of(point, objective)
    return scores[0] if len(scores) == 1 else sum(scores) - 0.4
