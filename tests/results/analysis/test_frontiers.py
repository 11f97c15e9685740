"""Properties of the Pareto set, the hull and the hypervolume that hold for any checkpoints."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retain.results.analysis.frontiers import height_at, hypervolume, lower_left_hull, pareto_set
from retain.results.analysis.loss_planes import Points

# Losses on a grid, so that ties, repetitions and collinear points are frequent.
LOSSES = st.integers(0, 40).map(lambda steps: 1 + steps / 8)
CHECKPOINTS = arrays.arrays(np.float64, st.tuples(st.integers(1, 25), st.just(2)), elements=LOSSES)


def dominates(a: Points, b: Points) -> bool:
    return bool((a <= b).all() and (a < b).any())


@given(CHECKPOINTS)
def test_the_pareto_set_holds_exactly_the_points_that_no_other_dominates(points: Points) -> None:
    expected = {tuple(point) for point in points if not any(dominates(other, point) for other in points)}
    front = pareto_set(points)
    assert {tuple(point) for point in front} == expected
    assert len(front) == len(expected)
    assert (np.diff(front[:, 0]) > 0).all()
    assert (np.diff(front[:, 1]) < 0).all()


@given(CHECKPOINTS, st.randoms(use_true_random=False))
def test_order_and_repetitions_do_not_change_the_set_or_the_hull(points: Points, random: Random) -> None:
    rows = [*range(len(points)), *(random.randrange(len(points)) for _ in range(5))]
    random.shuffle(rows)
    np.testing.assert_array_equal(pareto_set(points[rows]), pareto_set(points))
    np.testing.assert_array_equal(lower_left_hull(points[rows]), lower_left_hull(points))
    assert hypervolume(points[rows], [6, 6]) == pytest.approx(hypervolume(points, [6, 6]))


@given(CHECKPOINTS)
def test_hull_vertices_are_pareto_optimal_and_no_checkpoint_lies_below_the_hull(points: Points) -> None:
    hull, front = lower_left_hull(points), pareto_set(points)
    assert {tuple(vertex) for vertex in hull} <= {tuple(point) for point in front}
    np.testing.assert_array_equal(hull[[0, -1]], front[[0, -1]])
    heights = height_at(hull, points[:, 0])
    inside = ~np.isnan(heights)
    assert (points[inside, 1] >= heights[inside] - 1e-12).all()
    # No checkpoint lies left of the hull, and none right of it is lower than its end.
    assert (points[~inside, 0] > hull[-1, 0]).all()
    assert (points[~inside, 1] >= hull[-1, 1]).all()


@given(CHECKPOINTS)
def test_a_hull_bends_upwards_at_every_vertex(points: Points) -> None:
    hull = lower_left_hull(points)
    slopes = np.diff(hull[:, 1]) / np.diff(hull[:, 0])
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()


@pytest.mark.parametrize(
    ("points", "hull"),
    [
        ([], []),
        ([[2, 3]], [[2, 3]]),
        ([[2, 3], [2, 3]], [[2, 3]]),
        ([[1, 4], [2, 3], [3, 2], [4, 1]], [[1, 4], [4, 1]]),
        ([[1, 1], [2, 2], [3, 3]], [[1, 1]]),
        ([[1, 3], [1, 2], [1, 1]], [[1, 1]]),
        ([[1, 2], [2, 2], [3, 2]], [[1, 2]]),
        ([[1, 4], [2, 2], [2.5, 2.2], [2.9, 1.6], [4, 1]], [[1, 4], [2, 2], [4, 1]]),
    ],
    ids=[
        "none",
        "one",
        "a repeated point",
        "falling line",
        "rising line",
        "vertical line",
        "horizontal line",
        "a Pareto point above the hull",
    ],
)
def test_hulls_of_few_or_collinear_checkpoints(points: list[list[float]], hull: list[list[float]]) -> None:
    assert lower_left_hull(points).tolist() == hull


def test_the_height_of_a_hull_is_nan_outside_its_range() -> None:
    hull = lower_left_hull([[1, 4], [2, 2], [4, 1]])
    np.testing.assert_allclose(height_at(hull, [0.9, 1, 1.5, 2, 3, 4, 4.1]), [np.nan, 4, 3, 2, 1.5, 1, np.nan])
    assert np.isnan(height_at(lower_left_hull([]), [1.0])).all()
    assert height_at(hull, 3.0).shape == ()


def test_hypervolume_is_the_area_between_the_checkpoints_and_the_reference() -> None:
    assert hypervolume([[1, 3], [2, 1]], [4, 4]) == pytest.approx(7)
    assert hypervolume([[1, 3], [2, 1], [3, 3]], [4, 4]) == pytest.approx(7)
    assert hypervolume([[5, 1]], [4, 4]) == 0
    assert hypervolume([], [4, 4]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_a_number_is_rejected_with_its_row(bad: float) -> None:
    for use in (pareto_set, lower_left_hull, lambda points: hypervolume(points, [4, 4])):
        with pytest.raises(ValueError, match=r"point 1 is .*leave out"):
            use([[1, 2], [2, bad]])


def test_points_of_another_shape_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"\[n, 2\]"):
        pareto_set([1.0, 2.0, 3.0])
