"""Figures 2 to 12 of the paper, in its arrangement, from whatever trials a store holds: PNG, SVG and the data of each."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import EXPOSURE, grouped, seed_of
from retain.results.analysis.effects import worst_but_strays
from retain.results.analysis.loss_planes import L_RET, Floats
from retain.results.analysis.methods import PIPELINES, method_of, pipeline_of
from retain.results.figures.catalogue import REVERSED, FigureSpec, axis_label, figures_of, named_figures
from retain.results.figures.drawing import draw_axes
from retain.results.figures.series import Panel, Series, panels, published_panels, trials_of
from retain.results.figures.style import (
    GREY,
    MOST_LINES,
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
from retain.results.store.loss_table import Row
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text
from retain.sweeps.base.units import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Limits = tuple[Range | None, Range | None]
"""Of x and y, of axes that share them with others."""
PANEL_INCHES = (4.5, 3.3)
MOST_COLUMNS = 3
PUBLISHED = " (paper)"
MOST_LETTERS = 60
"""A longer legend takes two lines."""
LINE_LETTERS, KEY_LETTERS = 115, 6
"""The number of letters that fit a line of a legend, and the number that a marker takes the place of."""
OWN_LEGEND_INCHES, OWN_LEGEND_LETTERS = 0.115, 52
"""The height of a line in the legend of a single panel, and the number of letters that fit it."""
MOST_VECTOR_TRIALS = 2000
"""A line with more trials than these has them as pixels in the SVG."""
MOST_PANELS = 24
"""The page shows this many panels of a figure."""


def draw_paper_figures(
    store: Path,
    study: str,
    rows: Sequence[Row],
    overlay: bool = False,
    paper_scale: bool = False,
    overrides: Sequence[str] = (),
) -> list[DrawnFigure]:
    """Draw each figure of the study from the finished trials into the folder figures/ of `study_folder`.

    overlay: show the published curves too. A study of the paper's scale that is named after its figure has them in its own
    panels, dashed. The losses of other studies are on another scale, so the published curves are a figure of their own.
    """
    folder = study_folder(store, study, overrides) / "figures"
    drawn = []
    for spec in figures_of(study, rows) if rows else ():
        inside = overlay and paper_scale and spec in named_figures(study)
        drawn.append(draw_figure(folder, study, spec, rows, inside))
        if overlay and not inside and (theirs := published_panels(spec, rows)):
            title = f"{figure_title(spec.name)} as published ({spec.scale})"
            caption = (
                "The paper's own checkpoints and lines (arXiv 2605.12705, digitised), to compare shapes, not values."
            )
            drawn.append(_write_figure(folder / f"{spec.name}-published", theirs, title, title, caption))
    return drawn


def figure_title(name: str) -> str:
    """`Figure 3a` of figure3a."""
    return f"Figure {name.removeprefix('figure')}" if name.startswith("figure") else name.capitalize()


def method_title(name: str) -> str:
    """`mixed + LoRA` of mixed+lora."""
    return name.replace("+", " + ").replace("lora", "LoRA")


def draw_figure(folder: Path, study: str, spec: FigureSpec, rows: Sequence[Row], overlay: bool = False) -> DrawnFigure:
    """Draw one figure of the finished trials into a folder. overlay: show the published curves in its panels."""
    own = trials_of(spec, rows)
    finished = [row for row in own if all(row[loss] is not None for loss in spec.losses)]
    missing = len(own) - len(finished)
    note = trials_note(missing, len(own))
    title = spec.title or figure_title(spec.name)
    seeds = len({seed_of(row) for row in finished})
    caption = f"{note[0].upper()}{note[1:]}. {_what_is_drawn(spec, seeds)}{_what_is_absent(spec, own, rows)}"
    panel_rows = panels(spec, rows, overlay)
    if any(series.published for row in panel_rows for panel in row for series in panel.series):
        caption += f" Dashed: the paper's curves ({spec.scale})."
    heading = f"{study}, {title} ({note})" + ("" if spec.over_exposure else "; losses in nats per token")
    return _write_figure(
        folder / spec.name, panel_rows, heading, f"{title}. {spec.question}", caption, len(own), missing
    )


def _what_is_drawn(spec: FigureSpec, seeds: int) -> str:
    """What the lines and points of a figure are, as sentences."""
    if spec.over_exposure:
        means = f"Means over {seeds} seeds; bars from the lowest to the highest. " if seeds > 1 else ""
        return f"{means}Stars mark the lowest point of each line."
    lines = (
        f"Lines: median attainment over {seeds} seeds; bands: pointwise 95% bootstrap over seeds, too narrow with few seeds."
        if seeds > 1
        else "Lines: lower-left convex hulls of one seed's trials."
    )
    return f"{lines} Small points: trials. Losses are in nats per token; lower left is better."


def _what_is_absent(spec: FigureSpec, own: Sequence[Row], rows: Sequence[Row]) -> str:
    """The paper's pipelines and methods that the study does not have, as a sentence; empty if it has all."""
    there = {pipeline_of(row) for row in rows}
    absent = [PIPELINES[name] for name in spec.pipelines if name not in there and there - {None}]
    absent += [method_title(name) for name in sorted(spec.methods - {method_of(row) for row in own})]
    return f" Not in this study: {', '.join(absent)}." if absent else ""


def _write_figure(
    stem: Path,
    panel_rows: list[list[Panel]],
    heading: str,
    title: str,
    caption: str,
    trials: int = 0,
    missing: int = 0,
) -> DrawnFigure:
    """Draw panels into <stem>.png and <stem>.svg, and write every drawn point to <stem>.csv."""
    # Single panels of several pipelines stand side by side; a row of many panels wraps.
    flat = [panel for row in panel_rows for panel in row]
    paired = all(len(row) == 2 for row in panel_rows)
    columns = max(len(row) for row in panel_rows)
    if columns == 1:
        columns = min(len(flat), 2)
    elif columns > MOST_COLUMNS:
        columns = 2 if columns == 4 else MOST_COLUMNS
    rows = -(-len(flat) // columns)
    width, height = PANEL_INCHES if columns < MOST_COLUMNS else (3.4, 3.0)
    styles = line_styles(list(dict.fromkeys(series.name for panel in flat for series in panel.series)))
    if len(styles) > MOST_LINES:  # each panel has its legend below it
        height += OWN_LEGEND_INCHES * max(sum(len(_key_lines(one.name)) for one in panel.series) for panel in flat)
    with new_figure(stem, (width * columns, height * rows + 0.8)) as figure:
        limits = _draw_panels(figure, flat, styles, rows, columns)
        figure.suptitle(heading, fontsize=10)
    data = stem.with_name(f"{stem.name}.csv")
    write_text(data, _csv_text(flat))
    shown = [
        _for_page(f"{stem.name}-{number}", title, panel, styles, limits[number])
        for number, panel in enumerate(flat[:MOST_PANELS])
    ]
    if len(flat) > MOST_PANELS:
        caption += f" Shown: {MOST_PANELS} of {len(flat)} panels; {data.name} in the study's folder has all."
    return DrawnFigure(stem.name, title, caption, *image_files(stem), data, trials, missing, tuple(shown), paired)


def _for_page(name: str, title: str, panel: Panel, styles: Mapping[str, LineStyle], limits: Limits) -> Drawing:
    """One panel by itself, with the limits that it has in the figure."""

    def draw(axes: "Axes") -> None:
        _draw_panel(axes, panel, styles)
        along_x, along_y = limits
        if along_x:
            axes.set_xlim(along_x)
        if along_y:
            axes.set_ylim(along_y)

    alone = all(series.published for series in panel.series)
    legend = [
        (_label_of(series, alone), styles[series.name], series.published and not alone)
        for series in sorted(filter(_is_drawn, panel.series), key=lambda series: series.published)
    ]
    return Drawing(panel.title, draw_axes(name, ": ".join(filter(None, (title, panel.title))), draw), tuple(legend))


def _draw_panels(
    figure: "Figure", flat: Sequence[Panel], styles: Mapping[str, LineStyle], rows: int, columns: int
) -> list[Limits]:
    """Draw all panels and their legend; return the limits of each."""
    figure.get_layout_engine().set(w_pad=0.09, h_pad=0.07)  # type: ignore[union-attr,call-arg]
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    crowded = len(styles) > MOST_LINES
    handles: dict[str, Any] = {}
    for axes, panel in zip(places, flat, strict=False):
        own = _draw_panel(axes, panel, styles)
        handles |= own
        if crowded and own:
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}
            names = ["\n".join(_key_lines(label)) for label in own]
            axes.legend(own.values(), names, fontsize=6, frameon=False, **place)
    for axes in places[len(flat) :]:
        axes.set_visible(False)
    limits: list[Limits] = [(None, None)] * len(flat)
    for panels_alike in _with_shared_axes(flat):
        alike = [places[number] for number in panels_alike]
        along_x = None if flat[panels_alike[0]].x == EXPOSURE else share_range(alike, "x")
        along_y = share_range(alike, "y")
        for number in panels_alike:
            limits[number] = along_x, along_y
    if handles and not crowded:
        _draw_legend(figure, handles)
    return limits


def _key_lines(label: str) -> list[str]:
    """The name of a line, in the lines that it has in the legend of a single panel."""
    return textwrap.wrap(label, OWN_LEGEND_LETTERS) or [label]


def _draw_legend(figure: "Figure", handles: dict[str, Any]) -> None:
    """A legend below all panels; columns fill first, so a published line stands under the study's line of the same name."""
    names = list(dict.fromkeys(label.removesuffix(PUBLISHED) for label in handles))
    labels = sorted(handles, key=lambda label: (names.index(label.removesuffix(PUBLISHED)), label))
    columns = len(labels) if sum(map(len, labels)) <= MOST_LETTERS else -(-len(labels) // 2)
    while columns > 1 and columns * (max(map(len, labels)) + KEY_LETTERS) > LINE_LETTERS:
        columns -= 1
    shown = [handles[label] for label in labels]
    figure.legend(shown, labels, loc="outside lower center", ncols=columns, frameon=False)


def _label_of(series: Series, alone: bool) -> str:
    """The name of a line in a legend. alone: whether its panel shows published lines only."""
    return method_title(series.name) + (PUBLISHED if series.published and not alone else "")


def _with_shared_axes(flat: Sequence[Panel]) -> list[list[int]]:
    """The numbers of the panels that share axes: those over exposure share y, and small multiples of one panel both."""
    drawn = [number for number, panel in enumerate(flat) if any(map(_is_drawn, panel.series))]
    if flat[0].x == EXPOSURE:
        return [drawn] if drawn else []
    return list(grouped([number for number in drawn if flat[number].whole], lambda number: flat[number].whole).values())


def _is_drawn(series: Series) -> bool:
    return bool(len(series.line) or series.trials)


def _draw_panel(axes: "Axes", panel: Panel, styles: Mapping[str, LineStyle]) -> dict[str, Any]:
    """Draw one panel; return the legend's handles by label."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    alone = bool(panel.series) and all(series.published for series in panel.series)
    for series in filter(_is_drawn, panel.series):
        if series.published:
            theirs |= _draw_published(axes, series, styles[series.name].colour, alone)
        else:
            ours |= _draw_series(axes, series, styles[series.name], panel)
    if panel.title:
        axes.set_title(panel.title, loc="left")
    axes.set_xlabel("exposure λ" if panel.x == EXPOSURE else axis_label(panel.x))
    label = "post-training loss (nats per token)" if panel.x == EXPOSURE else axis_label(panel.y)
    axes.set_ylabel(_broken(label))
    for name, axis in ((panel.x, axes.xaxis), (panel.y, axes.yaxis)):
        if name.startswith(REVERSED):
            axis.set_major_formatter(lambda value, _: f"{-value:g}")
    ran = [np.array(series.trials) for series in panel.series if series.trials and not series.published]
    if ran and panel.x != EXPOSURE:
        _cut_strays(axes, panel, ran)
    if not alone and not ran:
        axes.text(0.5, 0.5, "no trial has ended yet", transform=axes.transAxes, ha="center", color=GREY)
    return ours | theirs


def _cut_strays(axes: "Axes", panel: Panel, ran: Sequence[Floats]) -> None:
    """End the axes of a plane below stray trials, such as runs that nearly diverged, and say how many are beyond.

    ran: the trials of each line, [n, 3]: seed, x, y.
    """
    ends = [
        worst_but_strays([(seed, own[own[:, 0] == seed, along]) for own in ran for seed in np.unique(own[:, 0])])
        for along in (1, 2)
    ]
    trials = np.concatenate(ran)[:, 1:]
    beyond = (trials > ends).any(axis=1)
    if beyond.any():
        shown = np.concatenate([trials[~beyond], *(series.line for series in panel.series if series.published)])
        axes.dataLim.update_from_data_xy(shown, ignore=True)
        axes.autoscale_view()
        text = f"{counted(int(beyond.sum()), 'trial')} beyond the axes"
        axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", color=GREY, fontsize=8)


def _broken(label: str) -> str:
    """A label in lines that fit the height of a panel; what is in brackets stays on one line."""
    if len(label) <= MOST_LETTERS // 2:
        return label
    what, _, unit = label.partition(" (")
    return textwrap.fill(what, MOST_LETTERS // 2) + (f"\n({unit}" if unit else "")


def _draw_series(axes: "Axes", series: Series, style: LineStyle, panel: Panel) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    x, y = series.line[:, 0], series.line[:, 1]
    trials = np.array(series.trials).reshape(-1, 3)
    faint: dict[str, Any] = {"alpha": 0.35, "rasterized": len(trials) > MOST_VECTOR_TRIALS, "edgecolors": style.colour}
    face, width = ("none", 0.8) if style.hollow else (style.colour, 0)
    axes.scatter(trials[:, 1], trials[:, 2], s=11, marker=style.marker, facecolors=face, linewidths=width, **faint)
    shape: dict[str, Any] = {"color": style.colour, "linewidth": 1.6}
    points = style.points
    if series.low is None or series.high is None:
        axes.plot(x, y, **shape, **points)
    elif panel.x == EXPOSURE:
        bars = [y - series.low, series.high - y]
        axes.errorbar(x, y, bars, capsize=2.5, elinewidth=1.0, **shape, **points)
    else:
        top = np.minimum(series.high, trials[:, 2].max())
        axes.fill_between(x, series.low, top, step="post", color=style.colour, alpha=0.2, linewidth=0)
        # Markers where the line steps tell lines of one colour apart.
        steps = np.flatnonzero(np.diff(y, prepend=np.inf)).tolist()
        axes.plot(x, y, drawstyle="steps-post", markevery=steps, **shape, **points | {"markersize": 3.5})
    if (panel.x, panel.y) == (EXPOSURE, L_RET) and len(y):
        star: dict[str, Any] = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "markeredgewidth": 0.7}
        axes.plot(x[y.argmin()], y.min(), color=style.colour, zorder=4, **star)
    return {_label_of(series, alone=False): Line2D([], [], **shape, **points)}


def _draw_published(axes: "Axes", series: Series, colour: str, alone: bool) -> dict[str, Any]:
    """Draw a published line dashed, thin over the study's lines; alone, draw its checkpoints too."""
    if alone:
        trials = np.array(series.trials).reshape(-1, 3)
        axes.scatter(trials[:, 1], trials[:, 2], s=9, color=colour, alpha=0.3, linewidths=0)
    width = 1.6 if alone else 1.0
    (line,) = axes.plot(series.line[:, 0], series.line[:, 1], "--", linewidth=width, color=colour, alpha=0.8)
    return {_label_of(series, alone): line}


def _csv_text(flat: Sequence[Panel]) -> str:
    """Every drawn point as comma-separated values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "x_is", "y_is", "line", "kind", "seed", "x", "y", "low", "high"])
    for panel in flat:
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
