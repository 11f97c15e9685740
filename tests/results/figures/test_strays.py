"""Trials far beyond all others do not squeeze the rest of a figure."""

from pathlib import Path

import pytest

from retain.results.figures.paper import draw_paper_figures
from tests.results.claims.test_claims import RETAINED, frontier_rows


@pytest.mark.parametrize("stray", [True, False])
def test_a_run_that_nearly_diverged_leaves_the_frontiers_their_room_and_is_counted(tmp_path: Path, stray: bool) -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": -0.05})
    for row in rows:
        if stray and row["axes"] == {"method": "mixed", "finetune.lr": 3, "seed": 2}:
            row[RETAINED] = 30.0
    (figure,) = draw_paper_figures(tmp_path, "mine", rows)
    assert ("<!-- 1 trial beyond the axes -->" in figure.svg.read_text()) is stray
