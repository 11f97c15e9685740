"""Median frontiers over seeds, compared with moocore's empirical attainment function, and their bootstrap bands."""

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retain.results.analysis.attainment import attainment_band
from retain.results.analysis.loss_planes import Points

LOSSES = st.integers(0, 30).map(float)
CHECKPOINTS = arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=LOSSES)
SEEDS = st.dictionaries(st.integers(0, 99), CHECKPOINTS, min_size=1, max_size=6)


@given(SEEDS)
@settings(deadline=None)
def test_the_median_equals_moocores_attainment_surface_at_50_percent(by_seed: dict[int, Points]) -> None:
    band = attainment_band(by_seed, draws=2)
    sets = np.repeat(np.arange(len(by_seed)), [len(points) for points in by_seed.values()])
    surface = moocore.eaf(np.concatenate(list(by_seed.values())), sets, percentiles=[50])[:, :2]
    surface = surface[np.argsort(surface[:, 0])]
    # The same staircase: the band has a row for each step of a seed, moocore one for each step of the median.
    steps = np.concatenate([[True], np.diff(band.median) < 0])
    np.testing.assert_array_equal(np.column_stack([band.x, band.median])[steps], surface)


@given(SEEDS)
@settings(deadline=None)
def test_a_band_encloses_its_median_and_the_median_falls(by_seed: dict[int, Points]) -> None:
    band = attainment_band(by_seed, draws=400)
    assert (np.diff(band.median) <= 0).all()
    assert np.isfinite(band.median).all()
    if len(by_seed) == 1:
        assert np.isnan(band.low).all()
        assert np.isnan(band.high).all()
    else:
        assert (band.low <= band.median).all()
        assert (band.median <= band.high).all()


def test_a_band_spans_the_seeds_and_is_reproducible() -> None:
    by_seed = {seed: np.array([[1.0, 4 + seed / 10], [2.0, 2 + seed / 10]]) for seed in range(3)}
    band = attainment_band(by_seed)
    assert band.x.tolist() == [1, 2]
    np.testing.assert_allclose(band.median, [4.1, 2.1])
    np.testing.assert_allclose(band.low, [4.0, 2.0])
    np.testing.assert_allclose(band.high, [4.2, 2.2])
    again = attainment_band(by_seed)
    np.testing.assert_array_equal(again.low, band.low)
    np.testing.assert_array_equal(again.high, band.high)


def test_equal_seeds_give_a_band_of_zero_width() -> None:
    band = attainment_band(dict.fromkeys(range(4), np.array([[1.0, 2.0], [3.0, 1.0]])))
    np.testing.assert_array_equal(band.low, band.median)
    np.testing.assert_array_equal(band.high, band.median)


def test_a_band_is_open_above_where_few_seeds_have_checkpoints() -> None:
    band = attainment_band({0: np.array([[1.0, 2.0]]), 1: np.array([[5.0, 2.0]])})
    assert band.x.tolist() == [1, 5]
    assert band.median.tolist() == [2, 2]
    assert band.high.tolist() == [np.inf, 2]


def test_without_checkpoints_the_band_is_empty() -> None:
    assert len(attainment_band({}).x) == 0
    assert len(attainment_band({0: np.empty((0, 2))}).median) == 0


def test_a_loss_that_is_not_a_number_is_rejected() -> None:
    with pytest.raises(ValueError, match="finite"):
        attainment_band({0: np.array([[1.0, np.nan]])})
