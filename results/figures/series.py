"""From trial rows to what the panels of a figure show: the trials, one line a method or a size, and its band."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retain.results.analysis.attainment import attainment_band
from retain.results.analysis.frontiers import lower_left_hull
from retain.results.analysis.methods import EXPOSURE, SEEDS, method_of, pipeline_of, points_by_seed, seed_of
from retain.results.figures.catalogue import L_IM, L_RET, PIPELINE_TITLES, ExposureFigure, PaperFigure, Side
from retain.results.figures.published import Curve, panels_of
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size

Floats = NDArray[np.float64]
RATE, SIZE = "finetune.lr", "posttrain.tokens"


@dataclass(frozen=True)
class Series:
    """One line with the trials behind it. Losses in nats per token."""

    name: str
    trials: tuple[tuple[int, float, float], ...]
    """(seed, x, y) of each finished trial."""
    line: Floats
    """[n, 2] by x: the hull of one seed's trials, the median attainment over seeds (a staircase), or their mean."""
    low: Floats | None = None
    """[n]: the band's lower end, where there are several seeds."""
    high: Floats | None = None
    """[n]: its upper end; inf where too few seeds attain anything."""
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a figure."""

    title: str
    x: str
    """A loss, or pretrain.exposure."""
    y: str
    series: list[Series] = field(default_factory=list)
    stars: bool = False
    """Mark the lowest point of each line, as the paper does in Figure 3."""


def trials_of(figure: PaperFigure | ExposureFigure, rows: Sequence[Row]) -> list[Row]:
    """The rows that a figure is about: those of its methods and, where the study has any of them, of its pipelines."""
    if isinstance(figure, ExposureFigure):
        return list(rows)
    pipelines = pipelines_of(figure, rows)
    wanted = {method for side in figure.sides for method in side.methods}
    return [row for row in rows if pipeline_of(row) in pipelines and (not wanted or method_of(row) in wanted)]


def is_finished(figure: PaperFigure | ExposureFigure, row: Row) -> bool:
    """Whether a row has every loss that the figure shows."""
    losses = (L_IM, L_RET) if isinstance(figure, ExposureFigure) else _losses(figure)
    return all(row[name] is not None for name in losses)


def pipelines_of(figure: PaperFigure, rows: Sequence[Row]) -> list[str | None]:
    """The figure's pipelines that a study has, in the paper's order; a study of none of them shows its own."""
    there = list(dict.fromkeys(pipeline_of(row) for row in rows))
    return [name for name in figure.pipelines if name in there] or there


def frontier_panels(figure: PaperFigure, rows: Sequence[Row], overlay: bool = False) -> list[list[Panel]]:
    """A row of panels for each pipeline, a column for each side; `overlay` adds the published curves.

    One seed: its lower-left hull. Several: the median attainment over seeds, with its bootstrap band.
    """
    several = len(pipelines_of(figure, rows)) > 1
    made = []
    for letter, pipeline in zip("abcdefghijklmnopqrstuvwxyz", pipelines_of(figure, rows), strict=False):
        own = [row for row in rows if pipeline_of(row) == pipeline]
        name = PIPELINE_TITLES.get(pipeline or "", pipeline or "")
        title = f"({letter}) {name}" if several else name
        panels = []
        for side in figure.sides:
            series = _published_frontiers(figure, pipeline, side) if overlay else []
            panels.append(Panel(_joined(title, side.title), side.x, side.y, [*series, *_frontiers(side, own)]))
        made.append(panels)
    return made


def published_panels(figure: PaperFigure | ExposureFigure, rows: Sequence[Row]) -> list[list[Panel]]:
    """The published curves in the same arrangement, without any trial of ours; empty where the paper has none."""
    if isinstance(figure, ExposureFigure):
        panels = [
            Panel(_exposure_title(loss), EXPOSURE, loss, _published_lines(figure, loss)) for loss in (L_IM, L_RET)
        ]
        return [panels] if panels[0].series else []
    made = []
    for pipeline in pipelines_of(figure, rows):
        title = PIPELINE_TITLES.get(pipeline or "", "")
        panels = [
            Panel(_joined(title, side.title), side.x, side.y, _published_frontiers(figure, pipeline, side))
            for side in figure.sides
        ]
        if any(panel.series for panel in panels):
            made.append(panels)
    return made


def exposure_panels(figure: ExposureFigure, rows: Sequence[Row], overlay: bool = False) -> list[list[Panel]]:
    """L_im over λ, then L_ret over λ for each fine-tuning rate; a line for each |D_post| (and whatever else varies).

    The lines are means over seeds, from the lowest to the highest seed.
    """
    rates = sorted({row["axes"][RATE] for row in rows if RATE in row["axes"]})
    immediate = list({_before_finetuning(row): row for row in rows}.values())
    parts = [(_exposure_title(L_IM), L_IM, immediate)]
    for rate in rates or [None]:
        own = [row for row in rows if rate is None or row["axes"][RATE] == rate]
        parts.append((_joined(_exposure_title(L_RET), f"rate {rate:g}" if len(rates) > 1 else ""), L_RET, own))
    return [
        [
            Panel(
                title,
                EXPOSURE,
                loss,
                [*(_published_lines(figure, loss) if overlay else []), *_lines(own, loss)],
                stars=loss == L_RET,
            )
            for title, loss, own in parts
        ]
    ]


def _before_finetuning(row: Row) -> tuple[str, str]:
    """What trials have in common that differ in fine-tuning only."""
    upstream = {name: value for name, value in row["axes"].items() if not name.startswith("finetune.")}
    return row["keys"]["posttrain"] or row["keys"]["pretrain"], str(upstream)


def _losses(figure: PaperFigure) -> set[str]:
    return {loss for side in figure.sides for loss in (side.x, side.y)}


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _frontiers(side: Side, rows: Sequence[Row]) -> list[Series]:
    groups: dict[str, list[Row]] = {method: [] for method in side.methods}
    by_exposure = _shows_exposures(rows)
    for row in rows:
        name = method_of(row)
        if not side.methods and "recipe" in row["axes"]:  # what a search recommends to confirm
            name = str(row["axes"]["recipe"])
        elif not side.methods and by_exposure:
            name = f"λ = {row['axes'].get(EXPOSURE, 0):g}"
        if not side.methods or name in groups:
            groups.setdefault(name, []).append(row)
    return [_frontier(name, group, side) for name, group in groups.items() if group]


def _shows_exposures(rows: Sequence[Row]) -> bool:
    """Whether a study without named methods has several exposures beside none."""
    if any("method" in row["axes"] for row in rows):
        return False
    return len({exposure for row in rows if (exposure := row["axes"].get(EXPOSURE))}) > 1


def _frontier(name: str, rows: Sequence[Row], side: Side) -> Series:
    by_seed = {seed: points for seed, points in points_by_seed(rows, side.x, side.y).items() if len(points)}
    trials = tuple((seed, float(x), float(y)) for seed, points in by_seed.items() for x, y in points)
    if len(by_seed) < 2:
        line = lower_left_hull(next(iter(by_seed.values()))) if by_seed else np.empty((0, 2))
        return Series(name, trials, line)
    band = attainment_band(by_seed)
    return Series(name, trials, np.column_stack([band.x, band.median]), band.low, band.high)


def _lines(rows: Sequence[Row], loss: str) -> list[Series]:
    varying = [name for name in _varying(rows) if name not in (EXPOSURE, RATE, *SEEDS)]
    if loss == L_IM:
        varying = [name for name in varying if not name.startswith("finetune.")]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_label({name: row["axes"].get(name) for name in varying}), []).append(row)
    return [_line(name, group, loss) for name, group in groups.items()]


def _line(name: str, rows: Sequence[Row], loss: str) -> Series:
    trials = tuple(
        (seed_of(row), float(row["axes"].get(EXPOSURE, 0.0)), float(row[loss])) for row in rows if row[loss] is not None
    )
    exposures = sorted({x for _, x, _ in trials})
    values = [np.array([y for _, x, y in trials if x == exposure]) for exposure in exposures]
    line = np.array([[x, y.mean()] for x, y in zip(exposures, values, strict=True)]).reshape(-1, 2)
    if max((len(y) for y in values), default=0) < 2:
        return Series(name, trials, line)
    return Series(name, trials, line, np.array([y.min() for y in values]), np.array([y.max() for y in values]))


def _varying(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row["axes"])
    return [name for name in names if len({str(row["axes"].get(name)) for row in rows}) > 1]


def _label(values: dict[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        if name == SIZE:
            parts.append(f"|D_post| = {format_size(value)}")
        elif name in ("method", "pipeline"):
            parts.append(PIPELINE_TITLES.get(str(value), str(value)))
        else:
            parts.append(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}")
    return ", ".join(parts) or "all trials"


def _exposure_title(loss: str) -> str:
    return "immediate: before fine-tuning" if loss == L_IM else "retained: after fine-tuning"


def _published_frontiers(figure: PaperFigure, pipeline: str | None, side: Side) -> list[Series]:
    """The paper's curves of one panel; a study without named pipelines is held against the paper's first one."""
    if not figure.pipelines:
        return []
    wanted = pipeline or figure.pipelines[0]
    return [
        _published(curve)
        for panel in panels_of(figure.name)
        if panel.pipeline == wanted and panel.panel.endswith(side.place) and (panel.x, panel.y) == (side.x, side.y)
        for curve in panel.curves
    ]


def _published_lines(figure: ExposureFigure, loss: str) -> list[Series]:
    if not figure.published:
        return []
    curves = [curve for panel in panels_of(figure.name) if panel.y == loss for curve in panel.curves]
    return [replace(_published(curve), name=f"|D_post| = {curve.name}", trials=()) for curve in curves]


def _published(curve: Curve) -> Series:
    return Series(curve.name, tuple((0, float(x), float(y)) for x, y in curve.points), curve.line, published=True)
