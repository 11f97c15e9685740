"""From trials to what the panels of a figure show: the trials, one line for each method or size, and its band."""

import itertools
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from statistics import fmean
from typing import Any

import numpy as np

from retain.results.analysis.attainment import attainment_band
from retain.results.analysis.axes import (
    EXPOSURE,
    METHOD,
    RATE,
    axis_values,
    grouped,
    seed_of,
    varied_axes,
)
from retain.results.analysis.frontiers import lower_left_hull
from retain.results.analysis.loss_planes import L_IM, Floats, LossPlane, points_by_seed
from retain.results.analysis.methods import (
    METHOD_FIELDS,
    PIPELINES,
    method_of,
    names_pipeline,
    pipeline_of,
    setting_axes,
    setting_name,
)
from retain.results.figures.catalogue import FigureSpec, Side
from retain.results.figures.published import panels_of
from retain.results.figures.style import MOST_LINES, small_multiples
from retain.results.store.loss_table import Row, chain_of, stages_after_posttraining, start_of_finetuning


@dataclass(frozen=True)
class Series:
    """One line with the trials behind it, losses in nats per token."""

    name: str
    trials: tuple[tuple[int, float, float], ...]
    """(seed, x, y) of each finished trial."""
    line: Floats
    """[n, 2] by x: the hull of one seed's trials, the median attainment over seeds (a staircase), or their mean."""
    low: Floats | None = None
    """[n]: the band's lower end; None with one seed."""
    high: Floats | None = None
    """[n]: the band's upper end; inf where too few seeds attain any y."""
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a figure."""

    title: str
    x: str
    """A loss, or pretrain.exposure."""
    y: str
    series: list[Series] = field(default_factory=list)
    whole: str | None = None
    """What the small multiples of one panel have in common, as they share their axes; None for a panel that is whole."""


def trials_of(spec: FigureSpec, rows: Sequence[Row]) -> list[Row]:
    """The rows of a figure: those of its methods and, if the study has any of them, of its pipelines."""
    pipelines = pipelines_of(spec, rows)
    return [
        row for row in rows if pipeline_of(row) in pipelines and (not spec.methods or method_of(row) in spec.methods)
    ]


def pipelines_of(spec: FigureSpec, rows: Sequence[Row]) -> list[str | None]:
    """The figure's pipelines that a study has, in the paper's order; all of the study's if it has none of them."""
    there = list(dict.fromkeys(pipeline_of(row) for row in rows))
    return [name for name in spec.pipelines if name in there] or there


def panels(spec: FigureSpec, rows: Sequence[Row], overlay: bool = False) -> list[list[Panel]]:
    """The panels of a figure, in rows; `overlay` adds the published curves. A panel of more than ten lines becomes several."""
    found = [_exposure_panels(spec, rows, overlay)] if spec.over_exposure else _frontier_panels(spec, rows, overlay)
    return [[part for panel in row for part in _small_multiples(panel)] for row in found]


def _small_multiples(panel: Panel) -> list[Panel]:
    """The panel, or one for each value of what its lines are first named by, or several of at most ten lines.

    A panel that is titled by such a value names its lines without it, so that they are alike in all panels.
    """
    if len(panel.series) <= MOST_LINES:
        return [panel]
    panel = replace(panel, whole=f"{panel.title}: {panel.y} over {panel.x}")
    apart = grouped(panel.series, lambda series: series.name.partition(", ")[0])
    if 1 < len(apart) < len(panel.series) and max(map(len, apart.values())) <= MOST_LINES:
        return [
            replace(panel, title=_joined(panel.title, name), series=[_without_first(one) for one in own])
            for name, own in apart.items()
        ]
    found: list[Panel] = []
    for own in small_multiples(panel.series):
        first = 1 + sum(len(one.series) for one in found)
        title = _joined(panel.title, f"lines {first} to {first + len(own) - 1}")
        found.append(replace(panel, title=title, series=list(own)))
    return found


def _without_first(series: Series) -> Series:
    return replace(series, name=series.name.partition(", ")[2] or series.name)


def published_panels(spec: FigureSpec, rows: Sequence[Row]) -> list[list[Panel]]:
    """The published curves in the same arrangement, without the study's trials; empty if the paper has none."""
    panel_rows = []
    for pipeline in [None] if spec.over_exposure else pipelines_of(spec, rows):
        title = PIPELINES.get(pipeline or "", "")
        row = [_panel(spec, side, _joined(title, side.title), pipeline) for side in spec.sides]
        if any(panel.series for panel in row):
            panel_rows.append(row)
    return panel_rows


def mean_curve(points: Iterable[tuple[Any, float | None]]) -> list[tuple[Any, float, float, float]]:
    """(x, mean, lowest, highest) of the y at each x, by ascending x, or names in their order; nan where every y is missing."""
    by_x = grouped(points, itemgetter(0))
    at = {x: [y for _, y in own if y is not None] or [np.nan] for x, own in by_x.items()}
    # Python's own functions: numpy's take ten times as long on a few values, and a study may have thousands of points.
    ordered = list(at) if any(isinstance(x, str) for x in at) else sorted(at)
    return [(x, fmean(at[x]), min(at[x]), max(at[x])) for x in ordered]


def _frontier_panels(spec: FigureSpec, rows: Sequence[Row], overlay: bool) -> list[list[Panel]]:
    """A row of panels for each pipeline, a column for each side."""
    pipelines = pipelines_of(spec, rows)
    axes = [name for name in setting_axes(rows) if not names_pipeline(name)]
    panel_rows = []
    for letter, pipeline in zip(_letters(), pipelines, strict=False):
        own = [row for row in rows if pipeline_of(row) == pipeline]
        name = PIPELINES.get(pipeline or "", pipeline or "")
        title = f"({letter}) {name}" if len(pipelines) > 1 else name
        panel_rows.append(
            [
                _panel(spec, side, _joined(title, side.title), pipeline, _frontiers(side, own, axes), overlay)
                for side in spec.sides
            ]
        )
    return panel_rows


def _letters() -> Iterator[str]:
    """a to z, then aa, ab and so on, without end."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _exposure_panels(spec: FigureSpec, rows: Sequence[Row], overlay: bool) -> list[Panel]:
    """L_im over λ, then L_ret over λ for each fine-tuning rate; a line for each |D_post| and whatever else varies."""
    before, after = spec.sides
    parts = [(before, "", before_finetuning(rows))]
    rates = sorted(axis_values(rows, RATE))
    for rate in rates or [None]:
        own = [row for row in rows if rate is None or row["axes"].get(RATE) == rate]
        parts.append((after, f"rate {rate:g}" if len(rates) > 1 else "", own))
    return [
        _panel(spec, side, _joined(side.title, text), None, _mean_lines(own, side.y), overlay)
        for side, text, own in parts
    ]


def _panel(
    spec: FigureSpec, side: Side, title: str, pipeline: str | None, ours: Sequence[Series] = (), overlay: bool = True
) -> Panel:
    return Panel(title, side.x, side.y, [*(_published(spec, side, pipeline) if overlay else []), *ours])


def before_finetuning(rows: Iterable[Row]) -> list[Row]:
    """One trial for each state before fine-tuning: trials that differ in fine-tuning only share one L_im."""
    return list({_before_finetuning(row): row for row in rows}.values())


def _before_finetuning(row: Row) -> tuple[str, str]:
    later = stages_after_posttraining(chain_of(row))
    upstream = {name: value for name, value in row["axes"].items() if name.partition(".")[0] not in later}
    return start_of_finetuning(row), str(upstream)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _frontiers(side: Side, rows: Sequence[Row], axes: Sequence[str]) -> list[Series]:
    """One line for each setting (`setting_axes`); a side that names methods has theirs alone, in its order."""
    others = [name for name in axes if name not in (METHOD, *METHOD_FIELDS)]

    def name_of(row: Row) -> str:
        if not side.methods:
            return setting_name(row, axes)
        return ", ".join([method_of(row), *([setting_name(row, others)] if others else [])])

    own = [row for row in rows if not side.methods or method_of(row) in side.methods]
    ordered = sorted(own, key=lambda row: side.methods.index(method_of(row))) if side.methods else own
    return [_frontier(name, found, side) for name, found in grouped(ordered, name_of).items()]


def _frontier(name: str, rows: Sequence[Row], side: Side) -> Series:
    """The lower-left hull of one seed, or the median attainment over several with its bootstrap band."""
    by_seed = points_by_seed(rows, LossPlane(side.x, side.y))
    trials = tuple((seed, float(x), float(y)) for seed, points in by_seed.items() for x, y in points)
    if len(by_seed) < 2:
        return Series(name, trials, lower_left_hull([(x, y) for _, x, y in trials]))
    band = attainment_band(by_seed)
    return Series(name, trials, np.column_stack([band.x, band.median]), band.low, band.high)


def _mean_lines(rows: Sequence[Row], loss: str) -> list[Series]:
    """One line of means over exposure for each setting, and for each rate that has no panel of its own."""
    settings, varied = setting_axes(rows), varied_axes(rows)
    names = [*settings, *(name for name in varied if name not in settings)]
    later = stages_after_posttraining(chain_of(rows[0])) if loss == L_IM and rows else ()
    own = [name for name in names if name not in (EXPOSURE, RATE) and name.partition(".")[0] not in later]
    return [_mean_line(name, found, loss) for name, found in grouped(rows, lambda row: setting_name(row, own)).items()]


def _mean_line(name: str, rows: Sequence[Row], loss: str) -> Series:
    """Means over seeds, from the lowest to the highest seed."""
    trials = tuple(
        (seed_of(row), float(row["axes"].get(EXPOSURE, 0.0)), float(row[loss])) for row in rows if row[loss] is not None
    )
    curve = np.array(mean_curve((x, y) for _, x, y in trials)).reshape(-1, 4)
    if len(curve) == len(trials):
        return Series(name, trials, curve[:, :2])
    return Series(name, trials, curve[:, :2], curve[:, 2], curve[:, 3])


def _published(spec: FigureSpec, side: Side, pipeline: str | None) -> list[Series]:
    """The paper's curves of one panel; a study without named pipelines is compared with the paper's first one."""
    if not spec.published:
        return []
    wanted = pipeline or next(iter(spec.pipelines), None)
    curves = [
        (curve, panel.x == side.y)
        for panel in panels_of(spec.name)
        if wanted in (None, panel.pipeline)
        and panel.panel.endswith(side.place)
        and {panel.x, panel.y} == {side.x, side.y}
        for curve in panel.curves
    ]
    if spec.over_exposure:
        own = [curve for curve, turned in curves if not turned]
        return [Series(f"|D_post| = {curve.name}", (), curve.line, published=True) for curve in own]
    found = []
    for curve, turned in curves:
        # The paper has the axes of some figures the other way round; lines stay sorted by x.
        points, line = (curve.points[:, ::-1], curve.line[::-1, ::-1]) if turned else (curve.points, curve.line)
        found.append(Series(curve.name, tuple((0, float(x), float(y)) for x, y in points), line, published=True))
    return found
