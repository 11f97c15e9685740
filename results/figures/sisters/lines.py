"""Figures of panels with one line for each setting: means over seeds with the trials behind them, and computed curves."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.figures.drawing import draw_axes
from retain.results.figures.series import mean_curve
from retain.results.figures.style import (
    GREY,
    Drawing,
    DrawnFigure,
    LineStyle,
    Range,
    image_files,
    line_styles,
    new_figure,
    share_range,
    trials_note,
)
from retain.sweeps.base.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (4.3, 3.4)
MOST_COLUMNS = 3


@dataclass(frozen=True)
class Line:
    """One line of a panel."""

    name: str
    points: tuple[tuple[int, float, float], ...]
    """(seed, x, y) of each trial, or of each point of a computed curve."""
    computed: bool = False
    """Whether it is a curve that was computed: dashed, without points, in the colour of the line of the same name."""
    joined: bool = True
    """Whether the means over seeds are joined."""

    @property
    def mean(self) -> list[tuple[float, float, float, float]]:
        """(x, mean, lowest, highest) over seeds, by x."""
        return mean_curve((x, y) for _, x, y in self.points)


@dataclass(frozen=True)
class LinePanel:
    """One pair of axes."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = False
    """Whether x is logarithmic, such as a number of tokens."""
    diagonal: bool = False
    """Whether x and y are the same kind of number, with a line where they are equal."""
    compared: bool = False
    """Whether its y has the range of all compared panels of the figure, as for one loss of several models."""


@dataclass(frozen=True)
class LineFigure:
    """A figure before it is drawn."""

    name: str
    title: str
    caption: str
    panels: tuple[LinePanel, ...]
    trials: int
    missing: int
    """The number of trials without a result yet."""


def draw_lines(folder: Path, study: str, figure: LineFigure) -> DrawnFigure:
    """Write a figure as PNG, SVG and its points as CSV into a folder."""
    stem = folder / figure.name
    styles = line_styles(list(dict.fromkeys(line.name for panel in figure.panels for line in panel.lines)))
    columns = 2 if len(figure.panels) == 4 else min(len(figure.panels), MOST_COLUMNS)
    rows = -(-len(figure.panels) // columns)
    width, height = PANEL_INCHES
    note = trials_note(figure.missing, figure.trials)
    with new_figure(stem, (width * columns, height * rows + 0.8)) as drawn:
        places = list(drawn.subplots(rows, columns, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axes, panel in zip(places, figure.panels, strict=False):
            handles |= _draw_panel(axes, panel, styles)
        for axes in places[len(figure.panels) :]:
            axes.set_visible(False)
        ranges = _shared_ranges(places, figure.panels)
        if handles:
            drawn.legend(
                handles.values(),
                handles.keys(),
                loc="outside lower center",
                ncols=min(len(handles), 4),
                frameon=False,
            )
        drawn.suptitle(f"{study}: {figure.title} ({note})", fontsize=10)
    data = stem.with_name(f"{stem.name}.csv")
    write_text(data, _csv_text(figure.panels))
    shown = tuple(
        _for_page(f"{stem.name}-{number}", panel, styles, along_y)
        for number, (panel, along_y) in enumerate(zip(figure.panels, ranges, strict=True))
    )
    caption = f"{note[0].upper()}{note[1:]}. {figure.caption}"
    png, svg = image_files(stem)
    return DrawnFigure(figure.name, figure.title, caption, png, svg, data, figure.trials, figure.missing, shown)


def _shared_ranges(places: Sequence["Axes"], panels: Sequence[LinePanel]) -> list[Range | None]:
    """Give the compared panels with lines one range of y; returns each panel's, None for its own."""
    drawn = [panel.compared and any(line.points for line in panel.lines) for panel in panels]
    if not any(drawn):
        return [None] * len(panels)
    along_y = share_range([axes for axes, shares in zip(places, drawn, strict=False) if shares], "y")
    return [along_y if shares else None for shares in drawn]


def _for_page(name: str, panel: LinePanel, styles: Mapping[str, LineStyle], along_y: Range | None) -> Drawing:
    """One panel by itself, with the range of y that it shares with others."""

    def draw(axes: "Axes") -> None:
        _draw_panel(axes, panel, styles)
        if along_y:
            axes.set_ylim(along_y)

    names = dict.fromkeys(line.name for line in panel.lines)
    measured = {line.name for line in panel.lines if not line.computed}
    legend = tuple((name, styles[name], name not in measured) for name in names)
    return Drawing(panel.title, draw_axes(name, panel.title, draw), legend)


def _draw_panel(axes: "Axes", panel: LinePanel, styles: Mapping[str, LineStyle]) -> dict[str, Any]:
    """Draw one panel; return the legend's handles by the names of its lines."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, NullFormatter

    handles: dict[str, Any] = {}
    for line in panel.lines:
        style = styles[line.name]
        shape: dict[str, Any] = {"color": style.colour, "linewidth": 1.5}
        if line.computed:
            _, x, y = np.array(line.points, dtype=float).reshape(-1, 3).T
            axes.plot(x, y, linestyle=(0, (4, 3)), **shape | {"linewidth": 1.1})
            handles.setdefault(line.name, Line2D([], [], linestyle="--", **shape))
            continue
        curve = np.array(line.mean, dtype=float).reshape(-1, 4)
        own: dict[str, Any] = shape | {"linestyle": "-" if line.joined else "none"}
        if len(curve) < len(line.points):
            bars = [curve[:, 1] - curve[:, 2], curve[:, 3] - curve[:, 1]]
            axes.errorbar(curve[:, 0], curve[:, 1], bars, capsize=2.5, elinewidth=1.0, **own, **style.points)
        else:
            axes.plot(curve[:, 0], curve[:, 1], **own, **style.points)
        handles[line.name] = Line2D([], [], **own, **style.points)
    if not any(line.points for line in panel.lines):
        axes.text(0.5, 0.5, "no trial has ended yet", transform=axes.transAxes, ha="center", color=GREY)
    elif panel.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _mark_values(axes, panel)
    if panel.diagonal and axes.has_data():
        low, high = (pick(*axes.get_xlim(), *axes.get_ylim()) for pick in (min, max))
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, zorder=0)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    return handles


def _mark_values(axes: "Axes", panel: LinePanel) -> None:
    """Mark the values of a logarithmic axis themselves if there are few: decades alone may mark none of them."""
    values = sorted({x for line in panel.lines if not line.computed for _, x, _ in line.points})
    if 1 < len(values) <= 6:
        axes.set_xticks(values)
        axes.set_xticks([], minor=True)


def _csv_text(panels: Sequence[LinePanel]) -> str:
    """Every drawn point as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "x_is", "y_is", "line", "kind", "seed", "x", "y", "low", "high"])
    for panel in panels:
        for line in panel.lines:
            head = [panel.title, panel.x, panel.y, line.name]
            if line.computed:
                writer.writerows([*head, "computed", "", x, y, "", ""] for _, x, y in line.points)
                continue
            writer.writerows([*head, "trial", seed, x, y, "", ""] for seed, x, y in line.points)
            writer.writerows([*head, "mean", "", x, y, low, high] for x, y, low, high in line.mean)
    return text.getvalue()
