"""Specialised pretraining: verdicts and figure compare both kinds at equal tokens, and say how many tokens one saves."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from retain.results.analysis.sisters.specialised import pretraining_of
from retain.results.claims.judging import Verdict
from retain.results.claims.verdicts import verdicts
from retain.results.figures.sisters.drawn import draw_sister_figures
from retain.results.store.loss_table import Row
from tests.results.sisters.rows import row, without_losses

BUDGETS = ("320k", "640k", "1.28M")
Change = Callable[[str], float]
"""What specialised pretraining adds to the loss on a corpus."""


def specialised_rows(change: Change, seeds: Sequence[int] = range(4), noise: float = 0.002) -> list[Row]:
    """Each doubling of pretraining lowers both losses by 0.2 nats."""
    rows: list[Row] = []
    for kind, (doublings, budget), seed in itertools.product(("general", "specialised"), enumerate(BUDGETS), seeds):
        after = {
            corpus: 3.0 - 0.2 * doublings + 0.3 * seed + (change(corpus) if kind == "specialised" else 0.0)
            for corpus in ("general", "target")
        }
        after = {name: loss + Random(f"{kind} {budget} {seed} {name}").gauss(0, noise) for name, loss in after.items()}
        axes = {"pretraining": f"{kind} {budget}", "seed": seed}
        rows.append(row(axes, {"pretrain": {"general": 3.0}, "adapt": after}, len(rows)))
    return rows


def the(claim: str, rows: Sequence[Row]) -> Verdict:
    (found,) = [one for one in verdicts(rows) if one.claim == claim]
    return found


def outcomes(rows: Sequence[Row]) -> dict[str, str]:
    return {one.claim: one.outcome for one in verdicts(rows)}


def test_lower_losses_are_supported_and_higher_ones_are_not() -> None:
    assert outcomes(specialised_rows(lambda corpus: -0.1)) == {"10a": "supported", "10b": "supported"}
    mixed = specialised_rows(lambda corpus: -0.1 if corpus == "target" else 0.1)
    assert outcomes(mixed) == {"10a": "supported", "10b": "not supported"}


def test_the_tokens_that_specialised_pretraining_saves_are_interpolated() -> None:
    """0.1 nats are half a doubling."""
    evidence = dict(the("10a", specialised_rows(lambda corpus: -0.1, noise=0)).evidence)
    saved = evidence["halvings of the tokens of pretraining that the same target loss needs"]
    assert saved.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (-1.0, "Of 4 seeds 4 need fewer than 320,000 tokens, beyond the range"),
        (1.0, "Of 4 seeds 4 need more tokens, beyond the range"),
    ],
)
def test_a_saving_beyond_the_range_is_said_to_be_so(change: float, sentence: str) -> None:
    assert sentence in the("10a", specialised_rows(lambda corpus: change)).note


def test_claims_are_undecided_before_there_are_results_and_a_study_of_one_kind_has_none() -> None:
    rows = specialised_rows(lambda corpus: -0.1)
    unfinished = [without_losses(one) for one in rows]
    assert outcomes(unfinished) == {"10a": "undecided", "10b": "undecided"}
    assert verdicts([one for one in rows if one["axes"]["pretraining"].startswith("general")]) == []


@pytest.mark.parametrize("name", ["specialised", "special 1M", "general much", "general  1M"])
def test_a_case_with_another_name_is_no_part_of_the_design(name: str) -> None:
    assert pretraining_of(row({"pretraining": name}, {"adapt": {"target": 1.0}})) is None


def test_the_figure_has_a_panel_for_each_corpus_and_a_line_for_each_kind(tmp_path: Path) -> None:
    (figure,) = draw_sister_figures(tmp_path, "mine", specialised_rows(lambda corpus: -0.1))
    assert [panel.title for panel in figure.panels] == ["loss on the target", "loss on general text"]
    assert [name for name, _, _ in figure.panels[0].legend] == ["general text alone", "target from the start"]
    assert math.isclose(figure.missing, 0)
