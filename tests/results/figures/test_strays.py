"""Trials far beyond all others do not squeeze the rest of a figure."""

from pathlib import Path

import pytest

from retain.results.figures.paper import draw_paper_figures
from retain.results.figures.planes import NamedPlane, draw_planes
from tests.results.claims.test_claims import RETAINED, frontier_rows


@pytest.mark.parametrize("stray", [True, False])
def test_a_run_that_nearly_diverged_leaves_the_frontiers_their_room_and_is_counted(tmp_path: Path, stray: bool) -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": -0.05})
    for row in rows:
        if stray and row["axes"] == {"method": "mixed", "finetune.lr": 3, "seed": 2}:
            row[RETAINED] = 30.0
    (figure,) = draw_paper_figures(tmp_path, "mine", rows)
    assert ("<!-- 1 trial beyond the axes -->" in figure.svg.read_text()) is stray


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("other", [0.98, 1.0], ids=["nearly", "equal"])
def test_trials_of_a_metric_that_is_nearly_always_equal_are_shown(tmp_path: Path, other: float) -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": -0.05}, seeds=range(4))
    for row in rows:
        strayed = row["axes"]["seed"] == 0 and row["axes"]["finetune.lr"] == 3
        row["measures"] = {"finetune": {"quiz/acc": other if strayed else 1.0}}
        row[RETAINED] += 30 if strayed and other == 1 else 0
    (figure,) = draw_planes(tmp_path, "mine", rows, [NamedPlane(RETAINED, "finetune/quiz/acc")], {"finetune/quiz/acc"})
    assert ("beyond the axes" in figure.svg.read_text()) is (other == 1)
