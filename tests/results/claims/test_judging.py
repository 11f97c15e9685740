"""The rule that makes a verdict of intervals: what several of them need, and which trials count as repetitions."""

import math
from pathlib import Path

import pytest

from retain.results.analysis.effects import Effect, effect_of, tail
from retain.results.claims.judging import Statement, adjust, holm, judge
from retain.results.claims.verdicts import verdicts
from retain.results.store.loss_table import Row
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.tree import expand
from tests.results.claims.test_claims import exposure_rows, falling, flat, frontier_rows
from tests.studies import made_up_facts, tiny_fields


def test_a_p_value_is_below_one_fortieth_exactly_if_the_interval_is_above_zero() -> None:
    for shift in (0.0, 0.05, 0.1, 0.15, 0.2, 0.4):
        effect = effect_of({0: shift, 1: shift + 0.05, 2: shift - 0.04, 3: shift + 0.03})
        assert (tail(effect) < 0.025) == (effect.low > 0)
        assert tail(effect) + tail(-effect) == pytest.approx(1)
    assert tail(effect_of({0: 0.1, 1: 0.1})) == 0
    assert tail(effect_of({0: 0.0, 1: 0.0})) == 1
    assert math.isnan(tail(effect_of({0: 1.0})))


def test_adjusted_p_values_are_holms_over_all_verdicts() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005, math.nan]) == pytest.approx([0.03, 0.06, 0.06, 0.02, math.nan], nan_ok=True)
    found = verdicts(exposure_rows(flat, falling, noise=0.05) + frontier_rows({"unmixed": 0, "mixed": -0.05}))
    assert [verdict.adjusted for verdict in found] == holm([verdict.p for verdict in found])
    for verdict in found:
        assert verdict.adjusted >= verdict.p
        assert (verdict.p < 0.05) == (verdict.outcome != "undecided")


def test_one_interval_of_several_refutes_only_after_the_correction() -> None:
    against = effect_of({0: -1.0, 1: -1.2, 2: -1.6})
    assert against.high < 0
    nothing = effect_of({0: 1.0, 1: -1.0, 2: 0.1})
    alone = judge(Statement("1a", "a claim"), 1, [("it", against)])
    among = judge(Statement("1a", "a claim"), 1, [("it", against), *[("another", nothing)] * 7])
    assert (alone.outcome, among.outcome) == ("not supported", "undecided")
    assert "Holm's correction for 8 intervals applies" in among.note
    assert among.p > alone.p
    stronger = effect_of({0: -1.0, 1: -1.01, 2: -1.02})
    refuted = judge(Statement("1a", "a claim"), 1, [("it", stronger), *[("another", nothing)] * 7])
    assert refuted.outcome == "not supported"
    assert nothing.low < stronger.low
    assert refuted.told == ("it", stronger)


def test_a_claim_with_alternatives_needs_one_that_holds_and_is_refuted_only_if_all_fail() -> None:
    yes, no = effect_of({0: 1.0, 1: 1.01, 2: 1.02}), effect_of({0: -1.0, 1: -1.01, 2: -1.02})

    def outcome(*effects: Effect) -> str:
        return judge(Statement("2b", "a claim"), 1, [("it", effect) for effect in effects], alternatives=2).outcome

    assert outcome(no, no, yes, yes) == "supported"
    assert outcome(yes, no, no, yes) == "not supported"
    assert outcome(yes, no, yes, effect_of({0: 1.0, 1: -1.0, 2: 0.1})) == "undecided"


def test_an_interval_without_zero_that_decides_nothing_says_that_it_is_one_of_several() -> None:
    barely = effect_of({0: 1.0, 1: 1.2, 2: 1.9})
    nothing = effect_of({0: 1.0, 1: -1.0, 2: 0.1})
    assert barely.low > 0
    best = judge(Statement("8a", "a claim"), 1, [("it", barely), *[("another", nothing)] * 4], alternatives=5)
    assert best.outcome == "undecided"
    assert best.sentence.endswith(". Corrected for the 5 intervals of the claim, it is undecided.")
    for effects in ([("it", barely)], [("it", nothing)] * 2):
        other = judge(Statement("8a", "a claim"), 1, effects)
        assert "Corrected" not in other.sentence


def test_verdicts_are_in_the_order_of_the_claims() -> None:
    claims = ["10a", "2b", "2a", "9a", "3"]
    found = adjust([judge(Statement(claim, "a claim"), 1, [("it", effect_of({}))]) for claim in claims])
    assert [verdict.claim for verdict in found] == ["2a", "2b", "3", "9a", "10a"]


def seeded_subsets(seeds: tuple[int, ...], subsets: tuple[int, ...]) -> list[Row]:
    """The grid of Figure 3 on several subsets, each with its own noise."""
    rows = []
    for subset in subsets:
        for each in exposure_rows(flat, falling, seeds=len(seeds), salt=subset):
            axes = {**each["axes"], "subset_seed": subset}
            rows.append({**each, "axes": axes if len(seeds) > 1 else {k: v for k, v in axes.items() if k != "seed"}})
    return rows


def test_subsets_alone_are_repetitions_and_next_to_seeds_each_has_its_own_verdicts() -> None:
    alone = verdicts(seeded_subsets((0,), (3, 4, 5)))
    assert [sorted(verdict.evidence[0][1].per_seed) for verdict in alone] == [[3, 4, 5]] * 2
    both = verdicts(seeded_subsets((0, 1, 2), (3, 4)))
    assert [verdict.sentence.split(":")[0] for verdict in both] == ["subset_seed 3", "subset_seed 4"] * 2
    assert all(sorted(verdict.evidence[0][1].per_seed) == [0, 1, 2] for verdict in both)


def test_subset_seed_can_be_an_axis_and_changes_every_stage() -> None:
    file = check_study(tiny_fields(grid={"subset_seed": [0, 1], "seed": [0, 1]}), Path("tiny.yaml"))
    tree = expand(file, made_up_facts(file))
    assert len(tree.trials) == 4
    assert len(tree.stages) == 12


@pytest.mark.parametrize("exposures", [(0, 0.25, 0.5, 0.75, 1), (0, 0.1, 0.3), (0, 0.3, 0.7, 0.9)])
def test_losses_that_are_all_equal_decide_nothing(exposures: tuple[float, ...]) -> None:
    """The rounding of a sum is the same at every seed, and would look like a certain slope."""
    for loss in (2.1, 3.7):
        rows = exposure_rows(lambda _, loss=loss: loss, lambda _, loss=loss: loss, noise=0.0, exposures=exposures)
        for verdict in [*verdicts(rows), *verdicts(rows, matched=True)]:
            assert (verdict.outcome, verdict.p) == ("undecided", 1.0)
