"""Effects of a known size are found at that size, and intervals have their nominal coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retain.results.analysis.effects import (
    Effect,
    effect_of,
    frontier_gap,
    hypervolume_gain,
    paired_difference,
    worst_but_strays,
    worst_of,
)
from retain.results.analysis.frontiers import lower_left_hull
from retain.results.analysis.loss_planes import Points

CHECKPOINTS = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 40).map(lambda steps: 1 + steps / 8)
)
CURVE = np.array([[1.0, 4.0], [2.0, 2.0], [4.0, 1.0]])


def shifted(by: float, seeds: int = 3) -> dict[int, Points]:
    return {seed: CURVE + np.array([seed / 10, by + seed / 10]) for seed in range(seeds)}


def test_the_interval_is_students_t_over_paired_differences() -> None:
    effect = paired_difference({0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0}, {2: 3.6, 1: 2.2, 0: 1.1, 8: 0.0})
    assert effect.per_seed == pytest.approx({0: 0.1, 1: 0.2, 2: 0.6})
    assert effect.seeds == 3
    assert effect.mean == pytest.approx(0.3)
    # 4.302653 is the 97.5% quantile of t with two degrees of freedom.
    assert effect.high - effect.mean == pytest.approx(4.302653 * np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert effect.mean - effect.low == pytest.approx(effect.high - effect.mean)


def test_the_other_direction_of_an_effect_is_the_difference_the_other_way_round() -> None:
    a, b = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.2, 2: 3.6}
    turned, swapped = -paired_difference(a, b), paired_difference(b, a)
    assert turned.per_seed == pytest.approx(swapped.per_seed)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((swapped.mean, swapped.low, swapped.high))


def test_one_seed_gives_an_effect_without_an_interval_and_no_seed_gives_neither() -> None:
    one = effect_of({4: 0.5})
    assert (one.mean, one.seeds) == (0.5, 1)
    assert np.isnan([one.low, one.high]).all()
    none = effect_of({})
    assert none.seeds == 0
    assert np.isnan([none.mean, none.low, none.high]).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_95_percent_of_intervals_cover_the_true_difference(seeds: int) -> None:
    draws = np.random.default_rng(0).normal(0.3, 1.0, size=(2000, seeds))
    effects = [effect_of(dict(enumerate(draw))) for draw in draws]
    covered = np.mean([effect.low <= 0.3 <= effect.high for effect in effects])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_the_gap_of_a_frontier_moved_down_is_the_distance_it_was_moved() -> None:
    effect = frontier_gap(shifted(0), shifted(-0.25))
    assert effect.per_seed == pytest.approx({0: -0.25, 1: -0.25, 2: -0.25})
    assert (effect.low, effect.high) == pytest.approx((-0.25, -0.25))


def test_the_gap_is_averaged_over_the_range_that_both_frontiers_cover() -> None:
    a = {0: np.array([[1.0, 3.0], [3.0, 1.0]])}
    b = {0: np.array([[2.0, 2.0], [4.0, 1.0]])}
    # Over [2, 3] a falls from 2 to 1 and b from 2 to 1.5.
    assert frontier_gap(a, b).mean == pytest.approx(0.25)


def test_a_seed_whose_frontiers_share_no_x_is_left_out_of_the_count() -> None:
    a, b = shifted(0), shifted(-0.5)
    b[1] = b[1] + np.array([10.0, 0.0])
    effect = frontier_gap(a, b)
    assert effect.seeds == 2
    assert sorted(effect.per_seed) == [0, 2]
    assert frontier_gap({0: CURVE}, {0: np.empty((0, 2))}).seeds == 0


def test_frontiers_of_one_checkpoint_are_compared_at_its_x() -> None:
    assert frontier_gap({0: np.array([[1.0, 3.0]])}, {0: np.array([[1.0, 2.0]])}).mean == -1
    assert frontier_gap({0: CURVE}, {0: np.array([[3.0, 1.0]])}).mean == -0.5


@given(CHECKPOINTS, CHECKPOINTS)
def test_swapping_the_methods_changes_the_sign_of_both_comparisons(a: Points, b: Points) -> None:
    for compare in (frontier_gap, hypervolume_gain):
        forward, backward = compare({0: a}, {0: b}), compare({0: b}, {0: a})
        assert forward.seeds == backward.seeds
        np.testing.assert_allclose(forward.mean, -backward.mean, atol=1e-12)


@given(CHECKPOINTS, CHECKPOINTS)
def test_more_checkpoints_never_lower_the_hypervolume_or_raise_the_frontier(a: Points, more: Points) -> None:
    both = np.concatenate([a, more])
    assert hypervolume_gain({0: a}, {0: both}).mean >= -1e-12
    gap = frontier_gap({0: a}, {0: both})
    assert gap.seeds == 0 or gap.mean <= 1e-12
    assert lower_left_hull(both)[0, 0] <= lower_left_hull(a)[0, 0]


def test_the_hypervolume_gain_is_the_area_that_the_better_method_adds() -> None:
    a, b = {0: np.array([[2.0, 2.0]])}, {0: np.array([[1.0, 1.0]])}
    assert hypervolume_gain(a, b).mean == 1
    assert hypervolume_gain(a, b, reference=[3, 3]).mean == 3
    assert hypervolume_gain(b, a, reference=[3, 3]).mean == -3


def test_a_diverged_run_does_not_move_the_default_reference() -> None:
    a, b = shifted(0), shifted(-0.25)
    expected = worst_of(a, b)
    a[0] = np.concatenate([a[0], [[50.0, 90.0]]])
    np.testing.assert_array_equal(worst_of(a, b), expected)
    np.testing.assert_allclose(expected, [4.2, 4.2])


def with_strays(seeds: int, strays: int) -> dict[int, Points]:
    """Frontiers of x and y from 1 to 3; those of the first seeds have one more checkpoint, with a y of 30."""
    usual = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    return {seed: np.concatenate([usual, [[0.9, 30.0]]]) if seed < strays else usual for seed in range(seeds)}


@pytest.mark.parametrize(("seeds", "strays", "worst"), [(1, 1, 30), (2, 1, 3), (3, 1, 3), (3, 2, 30), (5, 2, 3)])
def test_stray_checkpoints_move_the_reference_if_most_seeds_have_them(seeds: int, strays: int, worst: float) -> None:
    np.testing.assert_array_equal(worst_of(with_strays(seeds, strays), with_strays(seeds, 0)), [3, worst])


def test_a_checkpoint_is_no_stray_beside_others_that_are_on_no_frontier() -> None:
    """The higher rates are worse in both losses; at one seed, the second is on the frontier by chance."""
    usual = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    lucky = np.array([[1.0, 1.0], [2.0, 0.9], [3.0, 3.0]])
    np.testing.assert_array_equal(worst_of({0: usual, 1: usual, 2: lucky}, {0: usual, 1: usual, 2: usual}), [2, 1])


def test_nothing_is_far_from_values_that_are_all_equal() -> None:
    accuracies = [(seed, np.array([-1.0, -0.98 if seed == 0 else -1.0])) for seed in range(4)]
    assert worst_but_strays(accuracies) == -0.98


def test_a_seed_whose_whole_frontier_is_worse_moves_the_reference() -> None:
    """The seeds of a comparison may be far apart, because effects are paired within a seed."""
    far = {0: CURVE, 1: CURVE, 2: CURVE + 30}
    np.testing.assert_array_equal(worst_of(far, far), CURVE.max(axis=0) + 30)


def test_a_reference_needs_a_checkpoint() -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        worst_of({}, {0: np.empty((0, 2))})


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((-0.11, -0.00172, 0.106), "+0.00, 95% interval -0.11 to +0.11"),
        ((0.105, 0.15, 0.196), "+0.150, 95% interval +0.105 to +0.196"),
        ((0.0915, 0.212, 0.333), "+0.21, 95% interval +0.09 to +0.33"),
        ((0.0004, 0.05, 0.1), "+0.0500, 95% interval +0.0004 to +0.1000"),
        ((-1.67, -0.4, 0.871), "-0.4, 95% interval -1.7 to +0.9"),
        ((-386_000.0, 2_070.0, 390_000.0), "+2070, 95% interval -386000 to +390000"),
        ((-0.5, -0.5, -0.5), "-0.500, 95% interval -0.500 to -0.500"),
        ((0.0, 0.0, 0.0), "+0, 95% interval +0 to +0"),
    ],
)
def test_an_effect_and_its_interval_have_equally_many_decimals_and_an_end_that_is_not_0_does_not_read_as_0(
    ends: tuple[float, float, float], text: str
) -> None:
    low, mean, high = ends
    assert str(Effect(mean, low, high, 3, {})) == text
