"""Looks at growing results keep the error rate of one look, and their verdicts say which look decided."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.results.analysis.effects import Effect, effect_of, level_text, tail, tails
from retain.results.claims.judging import Statement, judge
from retain.results.claims.looks import Look, running_t
from retain.results.claims.power import in_words
from retain.results.claims.sequential import looks_in_words, looks_sentence, verdicts_at_looks
from retain.results.claims.verdicts import verdicts
from retain.results.store.loss_table import Row
from retain.results.store.study_files import SavedLooks
from retain.sweeps.schema.section import LOSSES
from tests.results.claims.test_claims import exposure_rows, flat
from tools.simulations.sequential_rates import SCHEDULES, compared, looked_at, whole_studies
from tools.simulations.verdict_rates import scenarios

COUNTS = (3, 5, 7, 9)
L_RET = LOSSES[1]
DRAWS = 40_000


@pytest.mark.parametrize("counts", SCHEDULES, ids=str)
def test_over_all_looks_a_verdict_is_wrong_as_rarely_as_at_one_look_and_peeking_errs_more(
    counts: tuple[int, ...],
) -> None:
    """A rate of 2.5% of 40,000 is known to within 0.08 percentage points; the limits come from other draws."""
    at_boundary = compared(0, counts, DRAWS)
    for wrong in (at_boundary.looks.supported, at_boundary.looks.refuted):
        assert wrong == pytest.approx(0.025, abs=0.004)
    assert at_boundary.peeking.supported > 2 * at_boundary.looks.supported
    assert at_boundary.looks.seeds > 0.95 * counts[-1]


def test_a_large_effect_stops_early_and_a_moderate_one_is_found_nearly_as_often_as_with_all_seeds() -> None:
    large, moderate = (compared(effect, SCHEDULES[0], 5000) for effect in (2, 1))
    assert large.looks.supported > 0.99
    assert large.looks.seeds < 8 < large.once.seeds
    assert moderate.looks.supported > moderate.once.supported - 0.04
    assert moderate.looks.seeds < 13


@pytest.mark.parametrize("rate", [0.025, 0.01, 0.003])
def test_repeated_p_values_hold_at_every_rate_as_corrections_for_several_claims_need_them(rate: float) -> None:
    counts = np.array(COUNTS)
    t = running_t(np.random.Generator(np.random.PCG64(7)).standard_normal((DRAWS, COUNTS[-1])), counts)
    p = tails(t, counts - 1)
    repeated = np.stack([Look(number + 1, COUNTS).over_all(p[:, number]) for number in range(len(COUNTS))], axis=1)
    assert (repeated >= p).all()
    assert (repeated.min(axis=1) < rate).mean() == pytest.approx(rate, rel=0.2)


def test_one_look_alone_is_a_fixed_sample() -> None:
    look, values = Look(1, (5,)), np.array([0.0, 1e-9, 0.3, math.nan, 1.0])
    assert look.level == pytest.approx(0.95)
    np.testing.assert_array_equal(look.over_all(values), values)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(range(1, 5)), st.floats(-3, 3), st.integers(0, 1000))
def test_the_interval_of_a_look_excludes_zero_exactly_if_the_claim_is_decided(
    number: int, mean: float, seed: int
) -> None:
    look = Look(number, COUNTS)
    random = np.random.Generator(np.random.PCG64(seed))
    plain = effect_of(dict(enumerate((mean + random.standard_normal(look.seeds)).tolist())))
    verdict = judge(Statement("1b", "a claim"), 1, [("it", plain)], look=look)
    ((_, effect),) = verdict.evidence
    assert effect.level == look.level > 0.95
    assert effect.low < plain.low < plain.high < effect.high
    outcome = "supported" if effect.low > 0 else "not supported" if effect.high < 0 else "undecided"
    assert verdict.outcome == outcome
    assert verdict.p >= 2 * min(tail(plain), tail(-plain))
    assert (verdict.p < 0.05) == (outcome != "undecided")


@given(st.floats(0.9, 0.999999))
def test_levels_read_as_numbers_that_tell_them_apart(level: float) -> None:
    text = level_text(level)
    assert float(text.removesuffix("%")) == pytest.approx(100 * level, abs=20 * (1 - level))
    assert text != "100%"


def test_the_level_in_a_sentence_is_that_of_its_interval() -> None:
    assert "95% interval" in str(effect_of({0: 1.0, 1: 1.1}))
    assert "99.1% interval" in str(effect_of({0: 1.0, 1: 1.1}, 0.991))
    assert isinstance(-effect_of({0: 1.0, 1: 1.1}, 0.991), Effect)
    assert (-effect_of({0: 1.0, 1: 1.1}, 0.991)).level == 0.991


def falling_until(seed: int, noise: float = 0.02, seeds: int = 9) -> list[Row]:
    """Losses that fall with λ at the seeds before this one, and rise by far more at the others; L_im is unclear."""
    rows = exposure_rows(flat, lambda exposure: 2.0 - 0.5 * exposure, seeds, noise)
    for row in rows:
        at, exposure = row["axes"]["seed"], row["axes"]["pretrain.exposure"]
        row[L_RET] += 5.0 * exposure if at >= seed else 0.0
        row[LOSSES[0]] += 0.2 * exposure * (-1) ** at
    return rows


def record(made: int, counts: tuple[int, ...] = COUNTS) -> SavedLooks:
    whole = looked_at(counts)
    return {**whole, "made": whole["made"][:made]}


def test_a_claim_keeps_the_outcome_and_the_effects_of_the_look_that_decided_it() -> None:
    rows = falling_until(5)
    fixed = next(verdict for verdict in verdicts(rows) if verdict.claim == "1b")
    assert fixed.outcome == "undecided"
    for made in (1, 2, 4):
        flatness, falls = verdicts_at_looks(rows, looks=record(made))
        assert (falls.outcome, falls.look) == ("supported", Look(1, COUNTS))
        assert falls.evidence[0][1].seeds == 3
        assert "supported at 3 seeds, look 1 of 4" in falls.sentence
        assert (flatness.outcome, flatness.look) == ("undecided", Look(made, COUNTS))
        assert ("the study went on to" in falls.note) == (made > 1)
        assert flatness.adjusted >= flatness.p
        assert "would decide it" not in in_words(flatness)


def test_results_that_no_look_has_judged_do_not_count() -> None:
    rows = falling_until(5)
    begun = [row | dict.fromkeys(LOSSES) if row["axes"]["seed"] >= 5 else row for row in rows]
    assert verdicts_at_looks(rows, looks=record(2)) == verdicts_at_looks(begun, looks=record(2))
    before = verdicts_at_looks(rows, looks=record(0))
    assert [(verdict.claim, verdict.outcome) for verdict in before] == [("1a", "undecided"), ("1b", "undecided")]
    assert "no value yet" in before[1].sentence


def test_a_study_without_looks_and_other_seeds_than_those_of_the_looks_are_fixed_samples() -> None:
    rows = falling_until(9)
    assert verdicts_at_looks(rows) == verdicts(rows)
    others: SavedLooks = {**record(2), "seeds": list(range(100, 109))}
    assert verdicts_at_looks(rows, looks=others) == verdicts(rows)
    assert all(verdict.look is None for verdict in verdicts(rows))


def test_a_decision_that_plain_intervals_make_too_early_waits_for_a_later_look() -> None:
    rows = exposure_rows(flat, lambda exposure: 2.0 - 0.5 * exposure, seeds=9, noise=0.12, salt=3)
    peeked = [row for row in rows if row["axes"]["seed"] < 3]
    early = next(verdict for verdict in verdicts(peeked) if verdict.claim == "1b")
    assert early.outcome == "supported"
    assert early.p > 2 * Look(1, COUNTS).limit
    *_, first = verdicts_at_looks(rows, looks=record(1))
    assert first.outcome == "undecided"
    assert first.evidence[0][1].level > 0.98
    *_, last = verdicts_at_looks(rows, looks=record(4))
    assert last.outcome == "supported"
    assert last.look is not None
    assert last.look.number > 1


@pytest.mark.parametrize("claim", ["1b", "3"])
def test_whole_studies_err_as_rarely_too_with_hypervolumes_whose_reference_point_moves(claim: str) -> None:
    """A part of `python -m tools.simulations.sequential_rates`. A rate of 2.5% exceeds 10% in one of 1,000 samples of 60."""
    scenario = next(one for one in scenarios(COUNTS[-1]) if one.claim == claim)
    _, ruled = whole_studies(scenario, COUNTS, 60)
    assert ruled <= 0.1


def test_a_report_says_when_the_looks_are_how_wide_intervals_are_and_what_is_next() -> None:
    assert "No look has been made yet" in " ".join(looks_in_words(record(0)))
    assert looks_sentence(record(0)) == "No look yet of 4; the first is at 3 seeds."
    looks = record(2)
    looks["made"][-1]["verdicts"] = [
        {"claim": "1a", "words": "flat", "outcome": "undecided", "look": 2},
        {"claim": "1b", "words": "falls", "outcome": "supported", "look": 1},
    ]
    planned, widened, now = looks_in_words(looks)
    assert "at 3, 5, 7, 9 seeds" in planned
    assert ", ".join(level_text(look["level"]) for look in looks["made"]) in widened
    assert now == "1 of 2 verdicts decided after look 2 of 4, at 5 seeds; the next look is at 7 seeds."
