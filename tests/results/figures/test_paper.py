"""Figures 2 to 12 from trial rows: their arrangement, what they draw, and what they report as missing."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from retain.results.analysis.frontiers import lower_left_hull
from retain.results.analysis.loss_planes import L_FT, L_RET, PLANES
from retain.results.figures.catalogue import FIGURES, FigureSpec, figures_of
from retain.results.figures.paper import draw_figure, draw_paper_figures
from retain.results.figures.published import panels_of
from retain.results.figures.series import before_finetuning, panels
from retain.results.figures.style import METHOD_STYLES, line_styles
from retain.results.store.loss_table import Row
from tests.results.made_rows import exposure_rows, method_rows

MUSIC = ("music-chemistry", "music-instruction")
MIXING = ("unmixed", "mixed")


def names(study: str, rows: list[Row]) -> list[str]:
    return [figure.name for figure in figures_of(study, rows)]


def data_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("figure", [one for one in FIGURES.values() if not one.over_exposure])
def test_every_panel_of_the_paper_has_its_place_axes_and_methods(figure: FigureSpec) -> None:
    paper = {
        (panel.pipeline, panel.panel.partition(".")[2], frozenset({panel.x, panel.y})): {
            curve.name for curve in panel.curves
        }
        for panel in panels_of(figure.name)
    }
    ours = {
        (pipeline, side.place, frozenset({side.x, side.y})): set(side.methods)
        for pipeline in figure.pipelines
        for side in figure.sides
    }
    assert ours == paper
    assert figure.scale == panels_of(figure.name)[0].model
    letters = [panel.panel[0] for panel in panels_of(figure.name)]
    assert list(dict.fromkeys(letters)) == list("abcd"[: len(figure.pipelines)])


def test_the_axes_run_the_same_way_in_every_figure() -> None:
    sides = {(side.x, side.y) for figure in FIGURES.values() if not figure.over_exposure for side in figure.sides}
    assert sides == {(plane.x, plane.y) for plane in PLANES}


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        ("figure2", ["figure2"]),
        ("laptop-figure2", ["figure2"]),
        ("laptop-figure3b", ["figure3b"]),
        ("figure4-5", ["figure4", "figure5"]),
        ("laptop-figure4", ["figure4", "figure5"]),
        ("figure8-9", ["figure8", "figure9"]),
        ("figure10-12", ["figure10", "figure11", "figure12"]),
        ("mine.figure7", ["figure7"]),
    ],
)
def test_a_study_named_after_figures_has_those_figures(study: str, expected: list[str]) -> None:
    assert names(study, []) == expected


def test_a_study_with_another_name_has_the_figures_that_fit_its_axes() -> None:
    assert names("mine", method_rows(MUSIC, MIXING)) == ["figure2"]
    assert names("mine", method_rows(MUSIC, (*MIXING, "unmixed+dropout", "unmixed+replay"))) == ["figure6"]
    assert names("mine", method_rows([None], (*MIXING, "unmixed+lora", "mixed+lora"))) == ["figure7"]
    assert names("mine", method_rows([None], ("mixed", "mixed+dropout"))) == ["frontiers"]
    assert names("mine", exposure_rows()) == ["exposure", "frontiers"]
    assert names("figure-of-mine", []) == names("table10", []) == ["frontiers"]


def test_a_figure_draws_its_pipelines_and_methods_and_counts_missing_trials(tmp_path: Path) -> None:
    rows = method_rows(MUSIC, (*MIXING, "mixed+dropout"), seeds=(0, 1), unfinished=12)
    (four, five) = draw_paper_figures(tmp_path, "laptop-figure4", rows)
    svg = four.svg.read_text()
    for text in ("(a) Music → Chemistry, dropout", "(b) Music → Instruction, replay", "mixed + dropout", "L_ret:"):
        assert text in svg, text
    assert (four.trials, four.missing) == (144, 12)
    assert "12 of 144 trials missing" in svg
    assert four.caption.startswith("12 of 144 trials missing. Lines: median attainment over 2 seeds; bands")
    assert "Not in this study: mixed + replay." in four.caption
    assert "L_pre:" in five.svg.read_text()
    assert four.png == tmp_path / "studies" / "laptop-figure4" / "figures" / "figure4.png"
    image: Any = imread(four.png)
    # Two rows, one for each pipeline, of two panels each.
    assert 0.7 < image.shape[0] / image.shape[1] < 1
    assert image.shape[1] >= 1200
    assert image.std() > 0


def test_the_csv_of_a_figure_holds_every_finished_trial_and_the_hull_of_one_seed(tmp_path: Path) -> None:
    rows = method_rows([None], (*MIXING, "unmixed+lora", "mixed+lora"), unfinished=5)
    (figure,) = draw_paper_figures(tmp_path, "figure7", rows)
    data = data_of(figure.data)
    for method in (*MIXING, "unmixed+lora", "mixed+lora"):
        finished = {
            (row[L_FT], row[L_RET]) for row in rows if row["axes"]["method"] == method and row[L_FT] is not None
        }
        own = [line for line in data if line["line"] == method]
        assert {(float(line["x"]), float(line["y"])) for line in own if line["kind"] == "trial"} == finished
        hull = [(float(line["x"]), float(line["y"])) for line in own if line["kind"] == "line"]
        np.testing.assert_array_equal(hull, lower_left_hull(sorted(finished)))
    assert {(line["x_is"], line["y_is"]) for line in data} == {(L_FT, L_RET)}


def test_lines_over_exposure_are_means_over_seeds_with_the_range_of_seeds(tmp_path: Path) -> None:
    rows = exposure_rows(sizes=(100_000, 300_000), seeds=(0, 1, 2))
    (figure,) = draw_paper_figures(tmp_path, "laptop-figure3a", rows)
    assert "Means over 3 seeds" in figure.caption
    lines = [
        line
        for line in data_of(figure.data)
        if (line["kind"], line["line"], line["x"]) == ("line", "|D_post| = 300k", "0.5")
    ]
    immediate, retained = lines
    values = [
        row[L_RET]
        for row in rows
        if (row["axes"]["pretrain.exposure"], row["axes"]["posttrain.tokens"]) == (0.5, 300_000)
    ]
    found = [float(retained[name]) for name in ("y", "low", "high")]
    np.testing.assert_allclose(found, [np.mean(values), min(values), max(values)])
    assert immediate["y_is"] == "immediate_posttraining_loss"


def test_at_the_papers_scale_the_published_curves_are_in_the_same_panels(tmp_path: Path) -> None:
    rows = exposure_rows(sizes=(30_000_000,), seeds=(0,))
    (figure,) = draw_paper_figures(tmp_path, "figure3a", rows, overlay=True, paper_scale=True)
    assert "|D_post| = 30M (paper)" in figure.svg.read_text()
    published = [line for line in data_of(figure.data) if line["kind"] == "published line"]
    retained = [float(line["y"]) for line in published if line["line"] == "|D_post| = 30M" and line["y_is"] == L_RET]
    assert retained == [2.1751, 2.0884, 2.0757, 2.0763, 2.0803]


def test_at_another_scale_the_published_curves_are_a_separate_figure(tmp_path: Path) -> None:
    rows = method_rows([None], (*MIXING, "unmixed+dropout", "unmixed+replay"))
    ours, theirs = draw_paper_figures(tmp_path, "laptop-figure6", rows, overlay=True)
    assert {line["kind"] for line in data_of(ours.data)} == {"trial", "line"}
    assert theirs.name == "figure6-published"
    panel = panels_of("figure6")[0]
    curve = panel.curve("unmixed")
    data = [line for line in data_of(theirs.data) if line["line"] == "unmixed" and "dropout" in line["panel"]]
    drawn = [(float(line["x"]), float(line["y"])) for line in data if line["kind"] == "published line"]
    # The paper has L_ft on y here.
    np.testing.assert_array_equal(drawn, curve.line[::-1, ::-1])
    assert all(line["kind"].startswith("published") for line in data_of(theirs.data))


def test_without_finished_trials_the_empty_panels_say_so(tmp_path: Path) -> None:
    rows = method_rows([None], MIXING, unfinished=24)
    (figure,) = draw_paper_figures(tmp_path, "figure2", rows, overlay=True, paper_scale=True)
    assert figure.missing == figure.trials == 24
    assert "no trial has ended yet" in figure.svg.read_text()


def test_the_same_rows_give_the_same_bytes_and_no_temporary_file_stays(tmp_path: Path) -> None:
    rows = method_rows([None], MIXING, seeds=(0, 1))
    first = draw_paper_figures(tmp_path / "one", "figure8", rows)
    second = draw_paper_figures(tmp_path / "two", "figure8", rows)
    for one, two in zip(first, second, strict=True):
        for kind in ("png", "svg", "data"):
            assert getattr(one, kind).read_bytes() == getattr(two, kind).read_bytes()
    assert {path.name for path in first[0].png.parent.iterdir()} == {"figure8.png", "figure8.svg", "figure8.csv"}


def test_without_a_method_axis_each_exposure_has_its_own_frontier(tmp_path: Path) -> None:
    rows = exposure_rows(sizes=(100_000,), rates=(5e-5, 2e-4))
    exposure, frontiers = draw_paper_figures(tmp_path, "mine", rows)
    assert {line["line"] for line in data_of(frontiers.data)} == {"λ = 0", "λ = 0.25", "λ = 0.5", "λ = 0.75", "λ = 1"}
    assert "retained: after fine-tuning, rate 0.0002" in exposure.svg.read_text()


def test_a_study_without_trials_has_no_figure(tmp_path: Path) -> None:
    assert draw_paper_figures(tmp_path, "mine", []) == []


def test_more_than_ten_lines_become_small_multiples_that_lose_no_line(tmp_path: Path) -> None:
    rows = exposure_rows(sizes=[10_000 * number for number in range(1, 25)], seeds=(0,))
    found = panels(FIGURES["figure3a"], rows)[0]
    assert [len(panel.series) for panel in found] == [8] * 6
    assert len({series.name for panel in found for series in panel.series}) == 24
    assert len({panel.title for panel in found}) == len(found)
    assert [panel.whole for panel in found] == [found[0].whole] * 3 + [found[3].whole] * 3
    assert found[0].whole != found[3].whole


def test_a_compute_matched_trial_without_post_training_keeps_the_immediate_loss_of_its_own_pretraining() -> None:
    rows = [
        row | {"keys": {**row["keys"], "posttrain": None}}
        for row in exposure_rows(sizes=(100_000,), rates=(5e-5, 2e-4))
    ]
    kept = before_finetuning(rows)
    assert len(kept) == len(rows) / 2
    assert {row["axes"]["pretrain.exposure"] for row in kept} == {0, 0.25, 0.5, 0.75, 1}


def test_two_lines_of_a_panel_never_share_a_style() -> None:
    many = [f"lr = {number}" for number in range(42)]
    for names in (["unmixed+dropout", "mixed+dropout"], ["mixed", "λ = 0.5", "unmixed"], list(METHOD_STYLES), many):
        assert len(set(line_styles(names).values())) == len(names)
    assert line_styles(["unmixed", "mixed"]) == {name: METHOD_STYLES[name] for name in ("unmixed", "mixed")}


def test_a_frontier_names_the_unit_of_its_losses_and_what_its_band_is(tmp_path: Path) -> None:
    figure = draw_figure(
        tmp_path, "mine", FIGURES["figure2"], method_rows((None,), ("unmixed", "mixed"), seeds=(0, 1, 2))
    )
    assert "losses in nats per token" in figure.svg.read_text(encoding="utf-8")
    assert "bands: pointwise 95% bootstrap over seeds, too narrow with few seeds" in figure.caption
