"""The recommendation of a search, the importance of its axes, and its curves, on made-up points."""

import random
from pathlib import Path
from typing import Any

import pytest

from retain.results.analysis.search_summary import Estimate, Result, best_group, frontier_area, importances, recommended
from retain.results.tensorboard.search_curves import End, curve_points
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.search_space import SearchSpace
from retain.sweeps.schema.section import LOSSES
from tests.studies import tiny_fields

PLANE = {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}
WITHIN = {"immediate_posttraining_loss": {"within": 0.01}}
AXES: dict[str, Any] = {
    "pretrain.exposure": {"uniform": [0, 1]},
    "posttrain.warmup": {"integers": [0, 5]},
    "finetune.betas": [[0.9, 0.95], [0.9, 0.99]],
}
MADE_UP = [(1.0, 3.0, 2.0), (1.005, 2.0, 3.0), (1.5, 1.0, 1.0), (1.0, 3.5, 3.5)]
"""L_im, L_ft and L_ret of each point."""


def space_of(**block: Any) -> SearchSpace:
    search = check_study(tiny_fields(search={"axes": AXES} | block), Path("tiny.yaml")).search
    assert search is not None
    return search


def points(space: SearchSpace) -> list[Result]:
    """The points p0 to p3: p0 and p3 share one exposure, p1 and p2 another."""
    found = []
    for number, (immediate, tuned, retained) in enumerate(MADE_UP):
        exposure = 0.1 if number in (0, 3) else 0.2
        found.append(made(space, f"p{number}", immediate, tuned, retained, exposure))
    return found


def made(
    space: SearchSpace, label: str, immediate: float, tuned: float, retained: float, exposure: float = 0.0
) -> Result:
    """A point with these losses, of one seed."""
    values = dict(zip(LOSSES, (immediate, retained, tuned, 1.0), strict=True))
    estimates = {name: Estimate(value, None, None, 1) for name, value in values.items()}
    return Result(label, {"pretrain.exposure": exposure}, estimates, space.block.objective.scores(values))


def test_the_axis_that_matters_is_the_most_important_given_enough_points() -> None:
    space = space_of()
    draw = random.Random(0)
    results = []
    for number in range(30):
        values = {axis.path: axis.at(draw.random()) for axis in space.axes}
        loss = (values["pretrain.exposure"] - 0.7) ** 2 + 1
        estimates = {name: Estimate(loss, None, None, 1) for name in LOSSES}
        results.append(Result(f"p{number}", values, estimates, (loss,)))
    first, *others = importances(space, results)
    assert first.axis == "pretrain.exposure"
    assert first.low <= first.mean <= first.high
    assert first.low > max(other.mean for other in others)
    assert sum(one.mean for one in (first, *others)) == pytest.approx(1)
    assert importances(space, results) == [first, *others]
    assert importances(space, results[:5]) == []
    assert abs(recommended(space, results)[0].values["pretrain.exposure"] - 0.7) < 0.1


def test_constraints_and_frontiers_decide_what_is_recommended() -> None:
    def best(**block: Any) -> list[str]:
        space = space_of(**block)
        return [one.label for one in recommended(space, points(space))]

    assert best(constraints=WITHIN) == ["p0"]
    assert best() == ["p2"]
    assert best(objective=PLANE, constraints=WITHIN) == ["p1", "p0"]
    assert best(constraints={"finetuning_loss": {"at_most": 0.5}}) == []
    space = space_of(objective=PLANE)
    # The area reaches up to (3.5, 3.5), the worst losses.
    assert frontier_area(space, points(space)) == pytest.approx(2.5 * 2.5)
    assert frontier_area(space, points(space)[:1], worst_of=points(space)) == pytest.approx(0.5 * 1.5)
    assert frontier_area(space_of(), points(space_of())) is None


def test_only_points_that_satisfy_the_constraints_add_to_the_frontiers_area() -> None:
    def area(**block: Any) -> float | None:
        space = space_of(objective=PLANE, **block)
        losses = [(1.0, 2.0, 2.0), (1.0, 3.0, 3.0), (1.5, 0.0, 0.0)]
        return frontier_area(space, [made(space, f"p{number}", *one) for number, one in enumerate(losses)])

    assert area() == pytest.approx(9.0)
    assert area(constraints=WITHIN) == pytest.approx(1.0)
    assert area(constraints={"immediate_posttraining_loss": {"at_most": 0.5}}) is None
    space = space_of(objective=PLANE, constraints=WITHIN)
    ends = [End(f"p{number}", "done", 100 * (number + 1), 0.0) for number in range(4)]
    curve = [value for tag, _, value in curve_points(space, ends, points(space)) if tag == "search/best frontier area"]
    # Up to (3.5, 3.5): 0.5 × 1.5 of p0 and 1.5 × 0.5 of p1, with 0.5 × 0.5 in common; p2 breaks the constraint.
    assert curve == pytest.approx([0.75, 1.25, 1.25, 1.25])


def test_constraints_read_as_sentences() -> None:
    bounds = space_of(constraints=WITHIN | {"finetuning_loss": {"at_most": 2.1}}).block.constraints
    assert [str(bound) for bound in bounds.values()] == ["within 1% of the best", "at most 2.1 nats"]


def test_the_best_group_has_the_best_point_or_the_largest_area() -> None:
    def best(**block: Any) -> list[str]:
        space = space_of(**block)
        return [one.label for one in best_group(space, points(space), ["pretrain.exposure"])]

    assert best() == ["p1", "p2"]
    assert best(constraints=WITHIN) == ["p0", "p3"]
    assert best(objective=PLANE) == ["p1", "p2"]
    # Without p2 both areas are rectangles up to (3.5, 3.5), 0.5 × 1.5 and 1.5 × 0.5; the first of equals wins.
    assert best(objective=PLANE, constraints=WITHIN) == ["p0", "p3"]
    assert best(constraints={"finetuning_loss": {"at_most": 0.5}}) == []


def test_the_curves_of_a_search_show_the_best_so_far_over_tokens_spent() -> None:
    ends = [End("p3", "done", 100, 0.1), End("p0", "done", 200, 0.2), End("p9", "pruned", 200, 0.2)]
    ends += [End("p8", "failed", 250, 0.25), End("p2", "done", 300, 0.3), End("p1", "done", 400, 0.4)]

    def curve(tag: str, **block: Any) -> list[Any]:
        space = space_of(**block)
        made = curve_points(space, ends, points(space))
        return [(tokens, pytest.approx(value)) for name, tokens, value in made if name == f"search/{tag}"]

    assert curve("best objective") == [(100, 3.5), (200, 2.0), (250, 2.0), (300, 1.0), (400, 1.0)]
    assert curve("best objective", constraints=WITHIN)[-1] == (400, 2.0)
    assert curve("best frontier area") == []
    area = curve("best frontier area", objective=PLANE)
    assert area == [(200, 0.75), (250, 0.75), (300, 6.25), (400, 6.25)]
    assert curve("points done") == [(100, 1), (200, 2), (250, 2), (300, 3), (400, 4)]
    assert curve("points pruned") == [(100, 0), (200, 1), (250, 1), (300, 1), (400, 1)]
    assert curve("points failed")[-1] == (400, 1)
    assert curve("device-hours")[-1] == (400, 0.4)


def test_a_retried_point_counts_by_its_last_end() -> None:
    space = space_of()
    ends = [End("p0", "failed", 10, 0.0), End("p0", "done", 20, 0.0)]
    made = list(curve_points(space, ends, points(space)))
    assert [value for tag, _, value in made if tag == "search/points failed"] == [1, 0]
    assert [value for tag, _, value in made if tag == "search/points done"] == [0, 1]
