import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retain.lightning_modules.optimisation import learning_rate

STEPS = st.integers(2, 3000)
RATES = st.floats(1e-6, 1.0)


def all_rates(steps: int, peak: float, floor: float, warmup: int) -> list[float]:
    return [learning_rate(step, steps, peak, floor, warmup) for step in range(steps)]


@given(STEPS, RATES, RATES, st.data())
def test_the_learning_rate_rises_linearly_to_the_peak_and_decays_to_the_floor(
    steps: int, peak: float, floor: float, data: st.DataObject
) -> None:
    assume(floor <= peak)
    warmup = data.draw(st.integers(0, steps - 2))
    rates = all_rates(steps, peak, floor, warmup)
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / (warmup + 1) for step in range(warmup)])
    assert rates[warmup] == pytest.approx(peak)
    assert rates[-1] == pytest.approx(floor)
    falling = rates[warmup:]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(falling))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates[:-1])


def test_the_decay_is_a_cosine() -> None:
    rates = all_rates(101, 1.0, 0.2, 0)
    assert rates[50] == pytest.approx(0.6)
    assert rates[25] == pytest.approx(0.2 + 0.8 * (1 + 2**-0.5) / 2)


@given(STEPS, RATES, st.data())
def test_with_a_floor_above_the_peak_the_learning_rate_stays_at_the_peak(
    steps: int, peak: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    floor = data.draw(st.floats(peak, 2.0))
    assert all_rates(steps, peak, floor, warmup)[warmup:] == pytest.approx([peak] * (steps - warmup))


def test_the_first_step_has_a_positive_learning_rate_and_a_floor_of_zero_is_reached_exactly() -> None:
    rates = all_rates(10, 1e-3, 0.0, 4)
    assert rates[0] == pytest.approx(2e-4)
    assert rates[-1] == 0.0


@given(RATES)
def test_a_stage_of_one_step_trains_at_the_peak(peak: float) -> None:
    assert all_rates(1, peak, 0.0, 0) == [peak]


@given(STEPS, RATES, RATES, st.booleans(), st.data())
def test_a_linear_schedule_is_a_line_from_the_peak_to_the_floor(
    steps: int, peak: float, floor: float, rise: bool, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 2))
    rates = [learning_rate(step, steps, peak, floor, warmup, "linear", rise) for step in range(steps)]
    end = floor if rise else min(floor, peak)
    line = [peak + (end - peak) * step / (steps - 1 - warmup) for step in range(steps - warmup)]
    assert rates[:warmup] == all_rates(steps, peak, floor, warmup)[:warmup]
    assert rates[warmup:] == pytest.approx(line)


@given(STEPS, RATES, RATES, st.data())
def test_a_constant_schedule_stays_at_the_peak_as_a_cosine_that_ends_at_its_peak(
    steps: int, peak: float, floor: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    rates = [learning_rate(step, steps, peak, floor, warmup, "constant") for step in range(steps)]
    assert rates == all_rates(steps, peak, peak, warmup)
    assert set(rates[warmup:]) == {peak}


@given(STEPS, RATES, RATES, st.data())
def test_wsd_holds_the_peak_and_decays_on_a_line_over_its_last_steps(
    steps: int, peak: float, floor: float, data: st.DataObject
) -> None:
    assume(floor <= peak)
    decay = data.draw(st.integers(1, steps))
    warmup = data.draw(st.integers(0, steps - decay))
    rates = [learning_rate(step, steps, peak, floor, warmup, {"wsd": decay}) for step in range(steps)]
    assert rates[:warmup] == pytest.approx([peak * (step + 1) / (warmup + 1) for step in range(warmup)])
    assert rates[warmup : steps - decay] == pytest.approx([peak] * (steps - decay - warmup))
    assert rates[steps - decay :] == pytest.approx([peak + (floor - peak) * (n + 1) / decay for n in range(decay)])
    assert rates[-1] == floor


@given(STEPS, RATES, st.data())
def test_with_rise_the_learning_rate_rises_to_a_floor_above_the_peak(
    steps: int, peak: float, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 2))
    floor = data.draw(st.floats(peak, 2.0))
    rates = [learning_rate(step, steps, peak, floor, warmup, rise=True) for step in range(steps)]
    cosine = [
        peak + (floor - peak) * (1 - math.cos(math.pi * step / (steps - 1 - warmup))) / 2
        for step in range(steps - warmup)
    ]
    assert rates[warmup:] == pytest.approx(cosine)
