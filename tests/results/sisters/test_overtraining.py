"""Overtraining: verdicts and figure say at which rates more pretraining raises the loss after fine-tuning."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from retain.results.analysis.sisters.overtraining import budget_of, curves
from retain.results.claims.verdicts import verdicts
from retain.results.figures.sisters.drawn import draw_sister_figures
from retain.results.store.loss_table import Row
from tests.results.sisters.rows import row, without_losses

BUDGETS, RATES = ("160k", "320k", "640k", "1.28M"), (1e-4, 1e-3)
Loss = Callable[[float, float], float]
"""Of doublings of pretraining and the rate."""


def overtraining_rows(loss: Loss, seeds: Sequence[int] = range(4), noise: float = 0.002) -> list[Row]:
    rows: list[Row] = []
    for budget, rate, seed in itertools.product(BUDGETS, RATES, seeds):
        doublings = math.log2((budget_of(budget) or 0) / 160_000)
        value = loss(doublings, rate) + 0.3 * seed + Random(f"{budget} {rate} {seed}").gauss(0, noise)
        after = {"general": value + 1, "target": value}
        axes = {"budget": budget, "finetune.lr": rate, "seed": seed}
        rows.append(row(axes, {"pretrain": {"target": 9.0, "general": 3.0}, "finetune": after}, len(rows)))
    return rows


def overtrained(doublings: float, rate: float) -> float:
    """At the high rate the loss is lowest after two doublings, at the low rate it falls on."""
    return 3.0 - 0.1 * doublings if rate == 1e-4 else 3.0 + 0.1 * (doublings - 1) ** 2


def outcomes(rows: Sequence[Row]) -> dict[str, str]:
    return {f"{one.claim} {one.statement.subject}": one.outcome for one in verdicts(rows)}


def test_more_pretraining_that_hurts_at_a_high_rate_only_is_found_there_only() -> None:
    assert outcomes(overtraining_rows(overtrained)) == {
        "9a general text, rate 0.0001": "not supported",
        "9a general text, rate 0.001": "supported",
        "9a the fine-tuning corpus, rate 0.0001": "not supported",
        "9a the fine-tuning corpus, rate 0.001": "supported",
        "9b general text": "supported",
        "9b the fine-tuning corpus": "supported",
    }


def test_a_high_rate_that_gains_more_from_pretraining_is_not_supported() -> None:
    found = outcomes(overtraining_rows(lambda doublings, rate: 3.0 - 0.1 * doublings * (1 + (rate == 1e-3))))
    assert set(found.values()) == {"not supported"}


def test_the_note_tells_where_the_loss_turns_up() -> None:
    found = verdicts(overtraining_rows(overtrained))
    (verdict,) = (one for one in found if (one.claim, one.statement.subject) == ("9b", "general text"))
    assert "1.28M at rate 0.0001, 320k at rate 0.001" in verdict.note


def test_claims_are_undecided_before_there_are_results() -> None:
    rows = overtraining_rows(overtrained)
    unfinished = [without_losses(one) for one in rows]
    assert set(outcomes(unfinished).values()) == {"undecided"}


def test_partial_results_leave_out_tokens_of_pretraining_without_any() -> None:
    rows = overtraining_rows(overtrained)
    for one in rows:
        if one["axes"]["budget"] == "1.28M":
            one["losses"]["finetune"] = {"general": None, "target": None}
    found = outcomes(rows)
    assert found["9a general text, rate 0.001"] == "undecided"
    assert found["9b general text"] == "supported"


def test_cases_whose_names_are_no_number_of_tokens_are_no_part_of_the_design() -> None:
    assert budget_of("1.28M") == 1_280_000
    assert [budget_of(name) for name in ("much", "0", "-3k", "1.5", None)] == [None] * 5
    rows = overtraining_rows(overtrained)
    named = [{**one, "axes": {**one["axes"], "budget": "much"}} for one in rows]
    assert curves(named) == []
    assert verdicts(named) == []


def test_losses_on_two_corpora_are_drawn_in_ranges_of_their_own(tmp_path: Path) -> None:
    """They lie nats apart, and what pretraining changes in each is far less."""
    (figure,) = draw_sister_figures(tmp_path, "mine", overtraining_rows(overtrained))
    marks = [re.findall(r"<text[^>]*>(\d\.\d+)</text>", panel.svg) for panel in figure.panels]
    assert marks[0]
    assert marks[0] != marks[1]


def test_the_figure_has_a_panel_for_each_corpus_and_a_line_for_each_rate(tmp_path: Path) -> None:
    (figure,) = draw_sister_figures(tmp_path, "mine", overtraining_rows(overtrained))
    assert [panel.title for panel in figure.panels] == ["loss on the fine-tuning corpus", "loss on general text"]
    assert [name for name, _, _ in figure.panels[0].legend] == ["rate 0.0001", "rate 0.001"]
