"""The published curves: the paper's numbers under this project's names, and lines that match their description."""

import numpy as np
import pytest

from retain.results.analysis.effects import frontier_gap, hypervolume_gain
from retain.results.analysis.frontiers import height_at, lower_left_hull
from retain.results.analysis.loss_planes import Points
from retain.results.analysis.methods import METHODS, PIPELINES
from retain.results.figures.published import Curve, Panel, about, panels_of, published
from retain.sweeps.schema.section import LOSSES

FIGURES = ("figure2", *(f"figure{number}" for number in range(4, 13)))
FRONTIERS = [(panel, curve) for figure in FIGURES for panel in panels_of(figure) for curve in panel.curves]


def visible(panel: Panel, points: Points) -> Points:
    error = about()["reading_error"]
    limits = np.array([panel.x_lim, panel.y_lim])
    return points[((points >= limits[:, 0] - error) & (points <= limits[:, 1] + error)).all(axis=1)]


def checkpoints_of(curve: Curve) -> Points:
    """The vertices of the line that are checkpoints."""
    ends = {tuple(end) for end in curve.ends_off_canvas}
    return np.array([vertex for vertex in curve.line if tuple(vertex) not in ends])


def test_figure_3_has_the_numbers_of_the_paper() -> None:
    retained = published("figure3a", "retained")
    assert (retained.x, retained.y) == ("pretrain.exposure", "retained_posttraining_loss")
    assert [curve.name for curve in retained.curves] == ["30M", "150M", "300M"]
    assert retained.curve("30M").points.tolist() == [
        [0, 2.1751],
        [0.25, 2.0884],
        [0.5, 2.0757],
        [0.75, 2.0763],
        [1, 2.0803],
    ]
    matched = published("figure3b", "immediate")
    assert matched.curve("300M").points[:, 1].tolist() == [1.6303, 1.6514, 1.6729, 1.7129, 1.7687]


def test_all_other_figures_use_this_projects_names() -> None:
    assert len(FRONTIERS) == 90
    for panel, curve in FRONTIERS:
        assert {panel.x, panel.y} < set(LOSSES)
        assert panel.pipeline in PIPELINES
        assert curve.name in METHODS
        assert panel.model == (
            "1B" if panel.figure in ("figure8", "figure9", "figure10", "figure11", "figure12") else "135M"
        )


def distance(points: Points, line: Points) -> float:
    """The largest distance of a point from the line through [m, 2]; 0 without points."""
    starts, ways = line, np.diff(line, axis=0, append=line[-1:])
    lengths = np.maximum((ways**2).sum(axis=1), 1e-30)
    from_start = points[:, None] - starts
    along = np.clip((from_start * ways).sum(axis=2) / lengths, 0, 1)
    return float(np.linalg.norm(from_start - along[:, :, None] * ways, axis=2).min(axis=1).max(initial=0))


def test_the_hull_of_the_published_checkpoints_is_the_published_line() -> None:
    # Rounding moves a vertex by up to half the reading error on each axis, possibly onto the line of its neighbours.
    error, whole = about()["reading_error"], 0
    for panel, curve in FRONTIERS:
        hull, drawn = lower_left_hull(curve.points), checkpoints_of(curve)
        where = (panel.figure, panel.panel, curve.name)
        assert distance(visible(panel, hull), drawn) <= error, where
        assert distance(visible(panel, drawn), hull) <= error, where
        equal = max(distance(hull, drawn), distance(drawn, hull)) <= error
        assert equal or len(curve.ends_off_canvas), where
        whole += equal
    assert whole == 82, "the other eight lines leave the canvas"


def test_no_published_checkpoint_lies_below_its_published_line() -> None:
    error = about()["reading_error"]
    for panel, curve in FRONTIERS:
        line, inside = curve.line[np.argsort(curve.line[:, 0])], visible(panel, curve.points)
        below = inside[inside[:, 1] < height_at(line, inside[:, 0])]
        assert distance(below, line) <= error, (panel.figure, panel.panel, curve.name)


def test_mixing_gains_hypervolume_on_the_published_checkpoints_as_the_paper_says() -> None:
    """Figures 2 and 8 in both planes; Figure 9 (FLAN at 1B) in the right one."""
    panels = [panel for figure in ("figure2", "figure8", "figure9") for panel in panels_of(figure)]
    for panel in panels:
        unmixed, mixed = ({0: panel.curve(name).points} for name in ("unmixed", "mixed"))
        gain = hypervolume_gain(unmixed, mixed).mean
        if (panel.figure, panel.panel) != ("figure9", "a.left"):
            assert gain > 0, (panel.figure, panel.panel)
            if (gap := frontier_gap(unmixed, mixed)).seeds:
                assert gap.mean < 0, (panel.figure, panel.panel)


def test_the_source_and_its_licence_are_named() -> None:
    source = about()
    assert source["licence"] == "CC BY 4.0"
    assert "2605.12705" in source["source"]
    assert "Early Data Exposure" in source["title"]
    assert source["reading_error"] == 1e-4


def test_an_unknown_figure_panel_or_curve_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="figure12"):
        panels_of("figure13")
    with pytest.raises(KeyError, match=r"a\.left"):
        published("figure2", "left")
    with pytest.raises(KeyError, match="mixed"):
        published("figure2", "a.left").curve("lora")
