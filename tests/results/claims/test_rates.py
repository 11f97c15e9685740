"""Verdicts err as rarely as they say: simulated studies with a known truth.

A small part of `python -m tools.simulations.verdict_rates`.
"""

import pytest

from tools.simulations.verdict_rates import Scenario, decided_as_planned, error_rates, page_errors, scenarios

DRAWS = 120
MOST = 0.067
"""A rate of 2.5% exceeds this in fewer than one of a hundred samples of 120."""
QUICK = [scenario for scenario in scenarios(3) if scenario.claim != "4d"]


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: f"{scenario.claim} {scenario.wrong}")
def test_a_wrong_verdict_is_as_rare_as_the_level_says(scenario: Scenario) -> None:
    assert error_rates(scenario, DRAWS).now <= MOST


def test_the_rules_before_found_effects_of_checkpoints_and_of_many_intervals_too_often() -> None:
    """So the simulations can tell a rule that errs from one that does not."""
    more_checkpoints, *_ = (scenario for scenario in scenarios(8) if scenario.claim == "4a")
    many_intervals, *_ = (scenario for scenario in QUICK if scenario.claim == "1a")
    assert error_rates(more_checkpoints, 30).before > 0.3
    assert error_rates(many_intervals, DRAWS).before > 0.08


def test_adjusted_p_values_keep_the_error_rate_of_a_whole_page() -> None:
    plain, adjusted = page_errors(40, 3)
    assert plain > 0.15
    assert adjusted <= 0.15


def test_the_planned_number_of_seeds_decides_as_often_as_promised() -> None:
    planned, decided = decided_as_planned(100, 0.1)
    assert planned > 5
    assert 0.68 <= decided <= 0.92
