"""The law of forgetting: planted constants are found again, and the verdicts and the figure say what the losses show."""

import csv
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from retain.results.analysis.sisters.forgetting_law import CONSTANTS, Fit, Law, conditions, fit
from retain.results.claims.judging import Verdict
from retain.results.claims.sequential import verdicts_at_looks
from retain.results.claims.verdicts import verdicts
from retain.results.figures.sisters.drawn import draw_sister_figures
from retain.results.figures.sisters.forgetting_law import law_in_words
from retain.results.store.loss_table import Row
from retain.results.store.study_files import SavedLooks

SIZES, TOKENS, SHARES = (300_000, 1_000_000, 2_200_000), (12_800, 25_600, 51_200, 102_400), (0, 0.01, 0.05, 0.2)
Forgotten = Callable[[int, int, float], float]


def law_rows(
    forgotten: Forgotten,
    seeds: Sequence[int] = range(5),
    noise: float = 0.0,
    shares: Sequence[float] = SHARES,
    salt: int = 0,
) -> list[Row]:
    """The trials of a study in which fine-tuning adds `forgotten` of N, D and p; seeds are 0.3 nats apart."""
    rows: list[Row] = []
    for size, tokens, share, seed in itertools.product(SIZES, TOKENS, shares, seeds):
        random = Random(f"{salt} {size} {tokens} {share} {seed}")
        before = 4.0 + 0.3 * seed
        after = before + forgotten(size, tokens, share) + random.gauss(0, noise)
        rows.append(
            {
                "axes": {
                    "size": str(size),
                    "finetune.tokens": tokens,
                    "finetune.mix.general.share": share,
                    "seed": seed,
                },
                "keys": {"pretrain": f"pre {size} {seed}", "posttrain": None, "finetune": f"fine {len(rows)}"},
                "immediate_posttraining_loss": None,
                "retained_posttraining_loss": None,
                "finetuning_loss": 2.0,
                "retained_pretraining_loss": after,
                "tokens": 1,
                "losses": {"pretrain": {"general": before}, "finetune": {"general": after, "chemistry": 2.0}},
                "parameters": size,
            }
        )
    return rows


def planted(alpha: float = 0.5, beta: float = 0.4, b: float = 100.0, e: float = 0.02) -> Law:
    """A law that adds 0.4 nats to a million parameters after 51,200 tokens without pretraining text."""
    return Law(0.4 * 1e6**alpha / 51_200**beta, b, alpha, beta, e)


def exactly(law: Law) -> Forgotten:
    return lambda size, tokens, share: float(law.forgotten(size, tokens, share))


def fitted(rows: Sequence[Row]) -> Fit:
    found = fit(conditions(rows))
    assert found is not None
    return found


@pytest.mark.parametrize("law", [planted(), planted(0.2, 0.8, 20.0, -0.05), planted(0.9, 0.2, 1000.0, 0.0)])
def test_planted_constants_are_found_again_where_nothing_disturbs_the_losses(law: Law) -> None:
    found = fitted(law_rows(exactly(law)))
    assert found.law.constants == pytest.approx(law.constants, rel=0.01, abs=0.01)
    assert found.relative_error() < 1e-5
    assert found.error_of_forgetting() < 1e-3


def test_the_intervals_hold_the_planted_constants_about_as_often_as_they_say() -> None:
    """95% of 12 · 5 intervals is 57; the constants of one fit go together, so fewer than 50 would be a surprise."""
    law, held = planted(), 0
    for salt in range(12):
        found = fit(conditions(law_rows(exactly(law), noise=0.01, salt=salt)), draws=60)
        assert found is not None
        bounds = [found.intervals[name] for name in CONSTANTS]
        held += sum(low <= value <= high for (low, high), value in zip(bounds, law.constants, strict=True))
        assert all(low < value < high for (low, high), value in zip(bounds, found.law.constants, strict=True))
    assert held >= 50, held


def test_the_largest_number_of_tokens_is_held_out_and_does_not_move_the_fit() -> None:
    law = exactly(planted())

    def bent(size: int, tokens: int, share: float) -> float:
        return law(size, tokens, share) * (2 if tokens == TOKENS[-1] else 1)

    plain, other = fitted(law_rows(law)), fitted(law_rows(bent))
    assert other.law == plain.law
    assert {one.condition.tokens for one in other.predictions if one.heldout} == {TOKENS[-1]}
    assert other.error_of_forgetting() == pytest.approx(0.5, abs=0.01)
    assert other.relative_error() > 100 * plain.relative_error()


def test_a_law_needs_two_sizes_shares_and_fitted_numbers_of_tokens() -> None:
    rows = law_rows(exactly(planted()))
    assert fit(conditions(rows)) is not None
    for few in (
        [row for row in rows if row["parameters"] == SIZES[0]],
        [row for row in rows if row["axes"]["finetune.tokens"] in TOKENS[:2]],
        [row for row in rows if row["axes"]["finetune.mix.general.share"] == 0],
        [{**row, "parameters": 0} for row in rows],
        [],
    ):
        assert fit(conditions(few)) is None


def test_one_seed_has_constants_without_intervals() -> None:
    found = fitted(law_rows(exactly(planted()), seeds=[0]))
    assert all(math.isnan(bound) for bounds in found.intervals.values() for bound in bounds)
    assert "one seed has no intervals" in law_in_words(found)


def outcomes(rows: Sequence[Row]) -> dict[str, str]:
    return {one.claim: one.outcome for one in verdicts(rows)}


def the(claim: str, rows: Sequence[Row]) -> Verdict:
    (found,) = [one for one in verdicts(rows) if one.claim == claim]
    return found


def test_one_percent_that_removes_most_of_the_forgetting_and_small_models_that_forget_more_are_supported() -> None:
    rows = law_rows(exactly(planted(b=1000.0, e=0.0)), noise=0.002)
    assert outcomes(rows) == {"7a": "supported", "7b": "supported"}
    removed = dict(the("7a", rows).evidence)["share of the forgetting that 1% removes"]
    assert removed.mean == pytest.approx(1 - 11**-0.5, abs=0.02)


def test_one_percent_that_removes_a_third_and_small_models_that_forget_less_are_not_supported() -> None:
    third = law_rows(lambda size, tokens, share: 0.3 * (size / 1e6) ** 0.2 * (1 - (share > 0) / 3), noise=0.002)
    assert outcomes(third) == {"7a": "not supported", "7b": "not supported"}


def test_claims_about_forgetting_are_undecided_before_there_are_results_and_with_one_seed() -> None:
    rows = law_rows(exactly(planted()))
    before = [{**row, "tokens": None, "losses": {"pretrain": {"general": None}, "finetune": {}}} for row in rows]
    assert outcomes(before) == {"7a": "undecided", "7b": "undecided"}
    assert outcomes(law_rows(exactly(planted()), seeds=[0])) == {"7a": "undecided", "7b": "undecided"}


def test_a_study_without_one_percent_or_with_one_size_has_no_verdict_on_it() -> None:
    law = exactly(planted())
    assert set(outcomes(law_rows(law, shares=(0, 0.05)))) == {"7b"}
    rows = law_rows(law)
    assert set(outcomes([row for row in rows if row["parameters"] == SIZES[0]])) == {"7a"}


def test_partial_results_compare_the_same_sizes_and_tokens() -> None:
    """The largest model has only its shortest fine-tunings, so only these count."""
    rows = law_rows(exactly(planted()), noise=0.001)
    for row in rows:
        if row["parameters"] == SIZES[-1] and row["axes"]["finetune.tokens"] != TOKENS[0]:
            row["losses"]["finetune"] = {"general": None}
    law = planted()
    ends = dict(the("7b", rows).evidence)["forgetting of the smallest minus the largest model, nats"]
    expected = law.forgotten(SIZES[0], TOKENS[0], 0) - law.forgotten(SIZES[-1], TOKENS[0], 0)
    assert ends.mean == pytest.approx(float(expected), abs=0.003)


def test_the_figure_has_a_panel_for_each_size_and_the_law_with_its_constants(tmp_path: Path) -> None:
    (drawn,) = draw_sister_figures(tmp_path, "mine", law_rows(exactly(planted()), noise=0.01))
    assert [panel.title for panel in drawn.panels] == [
        *("N = 300k", "N = 1M", "N = 2.2M"),
        "the law against what was measured",
    ]
    assert "held out from the fit" in drawn.caption
    assert re.search(r"α = 0\.[45]\d* \(0\.", drawn.caption)
    assert drawn.png.stat().st_size > 10_000
    with drawn.data.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    measured = [line for line in lines if line["panel"] == "N = 1M" and line["kind"] == "trial"]
    assert len(measured) == len(TOKENS) * len(SHARES) * 5
    curve = [
        line for line in lines if line["panel"] == "N = 1M" and line["kind"] == "computed" and line["line"] == "p = 0"
    ]
    at_end = float(curve[-1]["y"])
    assert at_end == pytest.approx(float(planted().forgotten(1_000_000, TOKENS[-1], 0)), abs=0.03)


def test_the_panels_of_the_sizes_share_one_range_so_that_sizes_compare(tmp_path: Path) -> None:
    (drawn,) = draw_sister_figures(tmp_path, "mine", law_rows(exactly(planted(alpha=1.5)), noise=0.01))
    *sizes, law = [re.findall(r"<text[^>]*>([\d.]+)</text>", panel.svg) for panel in drawn.panels]
    assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0] != law


def test_a_study_of_another_design_has_no_figure_of_another_paper(tmp_path: Path) -> None:
    assert draw_sister_figures(tmp_path, "mine", [{"axes": {"finetune.lr": 1e-4}, "tokens": 1, "losses": {}}]) == []


def test_forgetting_below_zero_is_fitted_by_the_constant() -> None:
    found = fitted(law_rows(lambda size, tokens, share: -0.05))
    assert np.isfinite(found.law.constants).all()
    assert found.law.forgotten(1e6, 3e4, 0.01) == pytest.approx(-0.05, abs=1e-6)


def test_a_constant_at_the_end_of_its_range_is_said_to_be_there() -> None:
    """Larger models forget more here, which the law cannot say: α may not be below 0."""
    found = fitted(law_rows(lambda size, tokens, share: 0.1 * (size / 1e6) * (tokens / 1e5) / (1 + 10 * share)))
    assert set(found.at_limits) & {"α", "B"}
    assert "At the end of their range" in law_in_words(found)
    assert fitted(law_rows(exactly(planted()))).at_limits == ()


def test_before_the_first_look_no_result_counts() -> None:
    looks: SavedLooks = {
        "design": "any",
        "own": [0, 1, 2],
        "seeds": [0, 1, 2, 3, 4],
        "counts": [3, 5],
        "block": 2,
        "made": [],
    }
    rows = law_rows(exactly(planted(b=1000.0, e=0.0)), noise=0.002)
    found = verdicts_at_looks(rows, looks=looks)
    assert {one.claim: one.outcome for one in found} == {"7a": "undecided", "7b": "undecided"}
    assert all(effect.seeds == 0 for one in found for _, effect in one.evidence)
