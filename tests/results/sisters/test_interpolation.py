"""How much data reaches a loss: interpolated in the logarithm, monotone, never extrapolated."""

import itertools
from random import Random

import pytest

from retain.results.analysis.sisters.interpolation import Amount, amount_for, logs_within


def test_between_two_amounts_the_loss_is_linear_in_the_logarithm_of_the_amount() -> None:
    assert amount_for(3.0, [1, 4], [4.0, 2.0]) == Amount(pytest.approx(2.0))
    assert amount_for(2.5, [1, 4, 16], [4.0, 2.0, 1.0]).value == pytest.approx(2**1.5)


def test_at_a_measured_loss_the_amount_is_that_of_the_run() -> None:
    for index, loss in enumerate(losses := [4.0, 3.5, 2.0, 1.9]):
        assert amount_for(loss, [1, 2, 4, 8], losses) == Amount(pytest.approx(2.0**index))


def test_beyond_the_range_the_end_stands_for_what_would_be_needed() -> None:
    assert amount_for(1.0, [1, 2, 4], [4.0, 3.0, 2.0]) == Amount(4.0, "more")
    assert amount_for(4.1, [1, 2, 4], [4.0, 3.0, 2.0]) == Amount(1.0, "less")


def test_losses_that_rise_with_the_amount_are_levelled() -> None:
    """The losses at 2 and 4 are pooled to 3, so a loss just below lies beyond both."""
    levelled = amount_for(2.9, [1, 2, 4, 8], [4.0, 2.8, 3.2, 2.0])
    assert 4 < levelled.value < 4.5
    assert amount_for(3.0, [1, 2, 4, 8], [4.0, 2.8, 3.2, 2.0]).value == pytest.approx(2.0)
    assert amount_for(2.0, [1, 2], [2.0, 2.0]) == Amount(1.0)


def test_a_lower_loss_never_needs_less_data() -> None:
    for seed in range(50):
        random = Random(seed)
        losses = [random.uniform(2, 4) for _ in range(5)]
        asked = sorted((random.uniform(1.5, 4.5) for _ in range(20)), reverse=True)
        found = [amount_for(loss, [1, 2, 4, 8, 16], losses).value for loss in asked]
        assert all(first <= second + 1e-9 for first, second in itertools.pairwise(found))


def test_a_mean_over_seeds_leaves_out_none_that_is_beyond_the_range() -> None:
    assert logs_within({0: Amount(2.0), 1: Amount(8.0)}, unit=4) == {0: -1.0, 1: 1.0}
    assert logs_within({0: Amount(2.0), 1: Amount(4.0, "more")}) == {}
