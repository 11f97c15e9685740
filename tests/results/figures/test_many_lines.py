"""Figures of more lines than one panel holds: their panels, their legends, and what is not drawn yet."""

import itertools
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from retain.results.figures import paper
from retain.results.figures.catalogue import FIGURES, FRONTIERS
from retain.results.figures.paper import draw_figure
from retain.results.figures.series import mean_curve, panels
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES
from tests.results.made_rows import method_rows

LONG = {
    "method": ["plain", "exposed", "replayed"],
    "midtrain.mix.music.share": [0, 0.2],
    "posttrain.max_tokens": [None, 60_000],
}


def trials(axes: dict[str, list[Any]]) -> list[Row]:
    """A trial for each combination of values and of two fine-tuning rates, with losses from 5 to 7."""
    swept = axes | {"finetune.lr": [1e-4, 1e-3]}
    rows: list[Row] = []
    for number, values in enumerate(itertools.product(*swept.values())):
        losses = {name: 5 + (7 * number + place) % 5 / 2 for place, name in enumerate(LOSSES)}
        rows.append({"axes": dict(zip(swept, values, strict=True)), "keys": {}, **losses, "tokens": 1})
    return rows


def test_panels_that_a_value_titles_name_their_lines_alike() -> None:
    found = panels(FRONTIERS, trials(LONG))[0]
    assert [panel.title for panel in found] == LONG["method"] * 2
    names = {tuple(line.name for line in panel.series) for panel in found}
    assert len(names) == 1
    assert names.pop()[-1] == "midtrain.mix.music.share = 0.2, posttrain.max_tokens = 60k"


def test_every_pipeline_has_its_panels_also_where_there_are_more_than_letters() -> None:
    corpora = {name: [f"c{number}" for number in range(6)] for name in ("posttrain.corpus", "finetune.corpus")}
    assert len(panels(FRONTIERS, trials(corpora))) == 36


def test_lines_without_a_trial_are_in_no_legend_and_do_not_stretch_the_axes(tmp_path: Path) -> None:
    rows = trials(LONG)
    for row in rows:
        if row["axes"]["method"] == "replayed" or row["axes"]["posttrain.max_tokens"]:
            row |= dict.fromkeys(LOSSES)
    drawn = draw_figure(tmp_path, "tiny", FRONTIERS, rows).panels
    shares = [f"midtrain.mix.music.share = {share}, posttrain.max_tokens = none" for share in ("0", "0.2")]
    assert [[name for name, _, _ in panel.legend] for panel in drawn[:3]] == [shares, shares, []]
    assert ">0</text>" not in drawn[0].svg


def test_frontiers_of_one_colour_are_told_apart_by_the_markers_of_their_legend(tmp_path: Path) -> None:
    """With LoRA, the lines of both methods have one colour: hollow markers without mixing, filled ones with it."""
    rows = method_rows((None,), ("unmixed", "mixed", "unmixed+lora", "mixed+lora"), seeds=(0, 1, 2))
    (panel,) = draw_figure(tmp_path, "tiny", replace(FIGURES["figure7"], pipelines=()), rows).panels
    hollow, filled = [style for name, style, _ in panel.legend if "LoRA" in name]
    assert (hollow.colour, hollow.hollow, filled.hollow) == (filled.colour, True, False)
    drawn = re.findall(rf"fill: (\S+?); stroke: {hollow.colour.lower()}", panel.svg)
    assert {"var(--paper)", "none", hollow.colour.lower()} <= set(drawn)


@pytest.mark.parametrize(
    "axes", [LONG, {"pretrain.exposure": [number / 12 for number in range(13)]}, {f"{'name ' * 20}": [*range(13)]}]
)
def test_legends_cover_no_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: dict[str, list[Any]]) -> None:
    figures: list[Figure] = []
    draw = paper._draw_panels
    monkeypatch.setattr(paper, "_draw_panels", lambda figure, *rest: (figures.append(figure), draw(figure, *rest))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns if a layout leaves no room for the axes
        draw_figure(tmp_path, "tiny", FRONTIERS, trials(axes))
    (figure,) = figures
    places = [axes for axes in figure.axes if axes.get_visible()]
    legends = [*figure.legends, *(legend for axes in places if (legend := axes.get_legend()))]
    assert legends
    for legend, one in itertools.product(legends, places):
        assert not legend.get_window_extent().overlaps(one.get_window_extent())


def test_named_values_are_drawn_in_the_order_of_the_study() -> None:
    points = [(name, float(place)) for place, name in enumerate(("plain", "exposed", "plain"))]
    assert mean_curve(points) == [("plain", 1.0, 0.0, 2.0), ("exposed", 1.0, 1.0, 1.0)]
    assert [x for x, *_ in mean_curve([(1.0, 2.0), (0.5, 3.0)])] == [0.5, 1.0]


def test_every_pipeline_has_its_panels_also_beyond_the_alphabet() -> None:
    names = [f"pipeline {number}" for number in range(30)]
    titles = [panel_row[0].title for panel_row in panels(FRONTIERS, method_rows(names, ("unmixed", "mixed")))]
    assert len(titles) == 30
    assert titles[25:28] == ["(z) pipeline 25", "(aa) pipeline 26", "(ab) pipeline 27"]
