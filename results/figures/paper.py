"""Figures 2 to 12 of the paper, in its arrangement, from whatever trials a store holds: PNG, SVG and the data of each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.methods import EXPOSURE, method_of, pipeline_of, seed_of
from retain.results.figures.catalogue import (
    AXIS_LABELS,
    PIPELINE_TITLES,
    AnyFigure,
    ExposureFigure,
    figures_of,
    named_figures,
)
from retain.results.figures.series import (
    Panel,
    Series,
    exposure_panels,
    frontier_panels,
    is_finished,
    published_panels,
    trials_of,
)
from retain.results.figures.style import GREY, Look, looks, save_figure, style
from retain.results.store.loss_table import Row
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = (4.5, 3.3)
MOST_COLUMNS = 3
MOST_NAMED = 12
"""More lines than these are drawn without a legend."""
PUBLISHED = " (paper)"
MOST_LETTERS = 60
"""A longer legend takes two lines."""
MOST_VECTOR_VALUES = 4000
"""A line with more than half as many trials has them as pixels in the SVG."""


@dataclass(frozen=True)
class DrawnFigure:
    """One figure as it lies in the store."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    data: Path
    trials: int
    missing: int


def draw_paper_figures(
    store: Path, study: str, rows: Sequence[Row], overlay: bool = False, paper_scale: bool = False
) -> list[DrawnFigure]:
    """Draw each figure that the study is for, from what is there so far, into <store>/studies/<study>/figures.

    overlay: show the published curves too. A study of the paper's scale that is named after its figure has them in its own
    panels, dashed; any other's losses are not on one axis with them, so they are a figure of their own beside it.
    """
    drawn = []
    for figure in figures_of(study, rows):
        inside = overlay and paper_scale and figure in named_figures(study)
        panels = _panels(figure, rows, inside)
        drawn.append(_written(store, study, figure, panels, rows))
        if overlay and not inside and (theirs := published_panels(figure, rows)):
            drawn.append(_written_published(store, study, figure, theirs))
    return drawn


def theory_figures(store: Path, study: str, rows: Sequence[Row]) -> list[DrawnFigure]:
    """The figure of a linear study beside its closed forms; none where no trial is done."""
    from retain.results.figures.theory import draw_theory

    paths = {path.suffix: path for path in draw_theory(store, study, rows)}
    if not paths:
        return []
    missing = sum(row["retained_posttraining_loss"] is None for row in rows)
    title = "Theory. Which features does pretraining learn as exposure crosses the threshold, and what is lost later?"
    note = f"{missing:,} of {len(rows):,} trials missing." if missing else f"All {len(rows):,} trials."
    caption = f"{note} Colours: gradient descent on the two-layer linear model; black, dashed: the closed forms."
    data = study_folder(store, study) / "losses.csv"
    return [DrawnFigure("theory", title, caption, paths[".png"], paths[".svg"], data, len(rows), missing)]


def figure_title(name: str) -> str:
    """`Figure 3a` of figure3a."""
    return f"Figure {name.removeprefix('figure')}" if name.startswith("figure") else name.capitalize()


def method_title(name: str) -> str:
    """`mixed + LoRA` of mixed+lora."""
    return name.replace("+", " + ").replace("lora", "LoRA")


def _panels(figure: AnyFigure, rows: Sequence[Row], overlay: bool) -> list[list[Panel]]:
    if isinstance(figure, ExposureFigure):
        return exposure_panels(figure, rows, overlay)
    return frontier_panels(figure, rows, overlay)


def _written(store: Path, study: str, figure: AnyFigure, panels: list[list[Panel]], rows: Sequence[Row]) -> DrawnFigure:
    own = trials_of(figure, rows)
    missing = sum(not is_finished(figure, row) for row in own)
    title = f"{figure_title(figure.name)}. {figure.asks}"
    note = f"{missing:,} of {len(own):,} trials missing" if missing else f"all {len(own):,} trials"
    stem = study_folder(store, study) / "figures" / figure.name
    png, svg, data = _files(stem, panels, f"{study}, {figure_title(figure.name)} ({note})")
    caption = " ".join([f"{note[0].upper()}{note[1:]}.", *_explained(figure, panels, own, rows)])
    if any(series.published for row in panels for panel in row for series in panel.series):
        caption += f" Dashed: the paper's curves ({figure.scale})."
    return DrawnFigure(figure.name, title, caption, png, svg, data, len(own), missing)


def _written_published(store: Path, study: str, figure: AnyFigure, panels: list[list[Panel]]) -> DrawnFigure:
    name = f"{figure.name}-published"
    title = f"{figure_title(figure.name)} as published ({figure.scale})"
    png, svg, data = _files(study_folder(store, study) / "figures" / name, panels, title)
    caption = "The paper's own checkpoints and lines (arXiv 2605.12705, digitised), to compare shapes, not values."
    return DrawnFigure(name, title, caption, png, svg, data, 0, 0)


def _explained(figure: AnyFigure, panels: list[list[Panel]], own: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The sentences of a caption: what is drawn, and what of the paper's arrangement the study does not hold."""
    seeds = len({seed_of(row) for row in own if is_finished(figure, row)})
    if isinstance(figure, ExposureFigure):
        means = f"Means over {seeds} seeds; bars from the lowest to the highest. " if seeds > 1 else ""
        return [f"{means}Stars mark the lowest point of each line."]
    lines = (
        f"Lines: median attainment over {seeds} seeds; bands: bootstrap over seeds."
        if seeds > 1
        else "Lines: lower-left convex hulls of one seed's trials."
    )
    said = [f"{lines} Small points: trials. Lower left is better."]
    there = {pipeline_of(row) for row in rows}
    wanted = {method for side in figure.sides for method in side.methods}
    absent = [PIPELINE_TITLES[name] for name in figure.pipelines if name not in there and there - {None}]
    absent += [method_title(name) for name in sorted(wanted - {method_of(row) for row in own})]
    if absent:
        said.append(f"Not in this study: {', '.join(absent)}.")
    return said


def _files(stem: Path, panels: list[list[Panel]], heading: str) -> tuple[Path, Path, Path]:
    with style():
        png, svg = save_figure(_drawn(panels, heading), stem)
    data = stem.with_name(f"{stem.name}.csv")
    write_text(data, _data(panels))
    return png, svg, data


def _drawn(panels: list[list[Panel]], heading: str) -> "Figure":
    from matplotlib.figure import Figure

    # One panel a pipeline stands side by side; many panels of one row are wrapped.
    flat = [panel for row in panels for panel in row]
    columns = max(len(row) for row in panels)
    if columns == 1:
        columns = min(len(flat), 2)
    elif columns > MOST_COLUMNS:
        columns = 2 if columns == 4 else MOST_COLUMNS
    rows = -(-len(flat) // columns)
    width, height = PANEL_INCHES if columns < MOST_COLUMNS else (3.4, 3.0)
    figure = Figure(figsize=(width * columns, height * rows + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.07)  # type: ignore[union-attr,call-arg]
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, flat, strict=False):
        handles |= _draw_panel(axes, panel)
    for axes in list(grid.flat)[len(flat) :]:
        axes.set_visible(False)
    if flat[0].x == EXPOSURE:
        _share_range([axes for axes, panel in zip(grid.flat, flat, strict=False) if panel.series])
    figure.suptitle(heading, fontsize=10)
    if handles and len(handles) <= MOST_NAMED:
        _draw_legend(figure, handles)
    return figure


def _draw_legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """Below all panels; columns are filled first, so that a published line stands under ours of the same name."""
    names = list(dict.fromkeys(label.removesuffix(PUBLISHED) for label in handles))
    labels = sorted(handles, key=lambda label: (names.index(label.removesuffix(PUBLISHED)), label))
    columns = len(labels) if sum(map(len, labels)) <= MOST_LETTERS else -(-len(labels) // 2)
    shown = [handles[label] for label in labels]
    figure.legend(shown, labels, loc="outside lower center", ncols=columns, frameon=False)


def _share_range(axes: Sequence["Axes"]) -> None:
    low = min(one.get_ylim()[0] for one in axes)
    high = max(one.get_ylim()[1] for one in axes)
    for one in axes:
        one.set_ylim(low, high)


def _draw_panel(axes: "Axes", panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns the legend's handles by their labels."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    names = list(dict.fromkeys(series.name for series in panel.series))
    alone = bool(panel.series) and all(series.published for series in panel.series)
    look_of = looks(names)
    for series in panel.series:
        if series.published:
            theirs |= _draw_published(axes, series, look_of[series.name].colour, alone)
        else:
            ours |= _draw_series(axes, series, look_of[series.name], panel)
    if panel.title:
        axes.set_title(panel.title, loc="left")
    axes.set_xlabel("exposure λ" if panel.x == EXPOSURE else AXIS_LABELS[panel.x])
    axes.set_ylabel("post-training loss (nats per token)" if panel.x == EXPOSURE else AXIS_LABELS[panel.y])
    if not alone and not any(series.trials for series in panel.series if not series.published):
        axes.text(0.5, 0.5, "no trial has ended yet", transform=axes.transAxes, ha="center", color=GREY)
    return ours | theirs


def _draw_series(axes: "Axes", series: Series, looks: Look, panel: Panel) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    x, y = series.line[:, 0], series.line[:, 1]
    trials = [value for _, *point in series.trials for value in point]
    axes.scatter(
        trials[::2],
        trials[1::2],
        s=11,
        marker=looks.marker,
        color=looks.colour,
        alpha=0.35,
        linewidths=0,
        rasterized=len(trials) > MOST_VECTOR_VALUES,
    )
    shape: dict[str, Any] = {"color": looks.colour, "linewidth": 1.6}
    points: dict[str, Any] = {"marker": looks.marker, "markersize": 4.5}
    if series.low is None or series.high is None:
        axes.plot(x, y, **shape, **points)
    elif panel.x == EXPOSURE:
        bars = [y - series.low, series.high - y]
        axes.errorbar(x, y, bars, capsize=2.5, elinewidth=1.0, **shape, **points)
    else:
        top = np.minimum(series.high, max(trials[1::2]))
        axes.fill_between(x, series.low, top, step="post", color=looks.colour, alpha=0.2, linewidth=0)
        axes.plot(x, y, drawstyle="steps-post", **shape)
    if panel.stars and len(y):
        star: dict[str, Any] = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "markeredgewidth": 0.7}
        axes.plot(x[y.argmin()], y.min(), color=looks.colour, zorder=4, **star)
    return {method_title(series.name): Line2D([], [], **shape, **points)}


def _draw_published(axes: "Axes", series: Series, colour: str, alone: bool) -> dict[str, Any]:
    """Dashed in the line's own colour, thin where it lies over ours; its checkpoints only where it is drawn alone."""
    if alone:
        points = [(x, y) for _, x, y in series.trials]
        axes.scatter([x for x, _ in points], [y for _, y in points], s=9, color=colour, alpha=0.3, linewidths=0)
    width = 1.6 if alone else 1.0
    (line,) = axes.plot(series.line[:, 0], series.line[:, 1], "--", linewidth=width, color=colour, alpha=0.8)
    return {method_title(series.name) + ("" if alone else PUBLISHED): line}


def _data(panels: list[list[Panel]]) -> str:
    """Every drawn point as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "x_is", "y_is", "line", "kind", "seed", "x", "y", "low", "high"])
    for panel in (panel for row in panels for panel in row):
        for series in panel.series:
            head = [panel.title, panel.x, panel.y, series.name]
            kind = "published trial" if series.published else "trial"
            writer.writerows([*head, kind, seed, x, y, "", ""] for seed, x, y in series.trials)
            bounds: list[tuple[object, object]] = [("", "")] * len(series.line)
            if series.low is not None and series.high is not None:
                bounds = list(zip(series.low, series.high, strict=True))
            kind = "published line" if series.published else "line"
            writer.writerows([*head, kind, "", x, y, *ends] for (x, y), ends in zip(series.line, bounds, strict=True))
    return text.getvalue()
