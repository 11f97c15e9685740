"""Replay schedules: runs are known by the names of their cases, and verdicts, efficiency and figure say what losses show."""

import csv
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from retain.results.analysis.sisters.replay_schedules import Cell, cell_of, schedules
from retain.results.claims.verdicts import verdicts
from retain.results.figures.sisters.drawn import draw_sister_figures
from retain.results.store.loss_table import Row
from tests.results.sisters.rows import row, without_losses

LATES, REPLAYS, LARGER = (1, 0.5, 0.25), (0, 0.5, 0.75), (2, 4)
Loss = Callable[[str, float, float], float]


def replay_rows(loss: Loss, seeds: Sequence[int] = range(3), noise: float = 0.002) -> list[Row]:
    """Both grids, and runs with more rare data, each doubling of which lowers the loss by 0.2."""
    rows: list[Row] = []
    for schedule, seed in itertools.product(("continued", "restarted"), seeds):
        cells = [(late, replay, 1) for late in LATES for replay in REPLAYS] + [(1, 0, more) for more in LARGER]
        for late, replay, more in cells:
            name = f"{schedule} a={late} r={replay}" + (f" rare={more}" if more > 1 else "")
            value = loss(schedule, late, replay) - 0.2 * math.log2(more) + 0.3 * seed
            value += Random(f"{name} {seed}").gauss(0, noise)
            last = {"general": 4.0, "target": value}
            losses = {"pretrain": last} if schedule == "continued" else {"pretrain": {"target": 9.0}, "phase2": last}
            rows.append(row({"phases": name, "seed": seed}, losses, len(rows)))
    return rows


def helpful(schedule: str, late: float, replay: float) -> float:
    """Replay saves 0.1 nats at r=0.5 and a=1, less where more came early; a restarted schedule costs 0.05."""
    return 4.0 - 0.2 * replay * late + (0.05 if schedule == "restarted" else 0.0)


def harmful(schedule: str, late: float, replay: float) -> float:
    return 4.0 + 0.2 * replay * late - (0.05 if schedule == "restarted" else 0.0)


def outcomes(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {(one.claim, one.outcome) for one in verdicts(rows)}


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("continued a=1 r=0", Cell("continued", 1, 0)),
        ("restarted a=0.125 r=0.9375", Cell("restarted", 0.125, 0.9375)),
        ("continued a=1 r=0 rare=4", Cell("continued", 1, 0, 4)),
        ("continued", None),
        ("stopped a=1 r=0", None),
        ("continued a=one r=0", None),
    ],
)
def test_the_name_of_a_case_says_what_a_run_is(name: str, cell: Cell | None) -> None:
    assert cell_of(row({"phases": name}, {"pretrain": {"target": 1.0}})) == cell


def test_replay_that_helps_most_where_little_came_early_is_supported() -> None:
    assert outcomes(replay_rows(helpful)) == {("8a", "supported"), ("8b", "supported"), ("8c", "supported")}


def test_replay_that_hurts_is_not_supported() -> None:
    assert outcomes(replay_rows(harmful)) == {
        ("8a", "not supported"),
        ("8b", "not supported"),
        ("8c", "not supported"),
    }


def test_replay_lowers_the_loss_if_one_share_of_it_does() -> None:
    rows = replay_rows(lambda schedule, late, replay: 4.0 + {0: 0.0, 0.5: -0.1, 0.75: 0.2}[replay])
    assert ("8a", "supported") in outcomes(rows)


def test_claims_are_undecided_before_there_are_results_and_a_study_of_one_schedule_compares_none() -> None:
    rows = replay_rows(helpful)
    unfinished = [without_losses(one) for one in rows]
    assert outcomes(unfinished) == {("8a", "undecided"), ("8b", "undecided"), ("8c", "undecided")}
    alone = [one for one in rows if one["axes"]["phases"].startswith("continued")]
    assert {claim for claim, _ in outcomes(alone)} == {"8a", "8b"}


def test_the_data_efficiency_is_what_more_rare_data_would_be_worth() -> None:
    """At r=0.5 replay saves 0.1 nats, half a doubling; at r=0.75 it saves 0.15."""
    continued, _ = schedules(replay_rows(helpful, noise=0))
    assert [one.value for one in continued.worth(0.5).values()] == pytest.approx([2**0.5] * 3)
    assert [one.value for one in continued.worth(0.75).values()] == pytest.approx([2**0.75] * 3)
    assert continued.worth(0.9) == {}


def test_an_efficiency_beyond_the_range_is_said_to_be_so(tmp_path: Path) -> None:
    rows = replay_rows(lambda schedule, late, replay: 4.0 - 0.8 * replay)
    (verdict,) = (one for one in verdicts(rows) if one.claim == "8a" and "continued" in one.words)
    assert "3 of 3 seeds need more than ×4" in verdict.note
    effect = dict(verdict.evidence)["data efficiency at r=0.75 and a=1, doublings of the rare data"]
    assert effect.seeds == 0
    (figure,) = draw_sister_figures(tmp_path, "mine", rows)
    assert "Continued, r=0.75: 3 of 3 seeds need more than ×4" in figure.caption


def test_the_figure_has_both_grids_more_rare_data_and_efficiency(tmp_path: Path) -> None:
    rows = replay_rows(helpful)
    (figure,) = draw_sister_figures(tmp_path, "mine", rows)
    assert [panel.title for panel in figure.panels] == [
        *("schedule continued", "schedule restarted", "without replay, a = 1", "data efficiency, a = 1"),
    ]
    with figure.data.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    own = [one for one in lines if one["panel"] == "schedule restarted" and one["kind"] == "trial"]
    assert len(own) == len(LATES) * len(REPLAYS) * 3
    assert {one["line"] for one in own} == {"a = 0.25", "a = 0.5", "a = 1"}


def test_a_study_whose_rare_data_has_another_name_has_neither_verdicts_nor_a_figure(tmp_path: Path) -> None:
    rows = replay_rows(helpful)
    for one in rows:
        one["losses"] = {stage: {"music": own["target"]} for stage, own in one["losses"].items()}
    assert verdicts(rows) == []
    assert draw_sister_figures(tmp_path, "mine", rows) == []
