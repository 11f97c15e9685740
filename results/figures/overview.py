"""The overview figure of any study: L_im and L_ret over exposure, and L_ft against L_ret."""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.results.analysis.axes import EXPOSURE, METHOD, RATE, SEEDS, axis_names, axis_values, grouped
from retain.results.analysis.loss_planes import L_FT, L_IM, L_RET
from retain.results.figures.series import spread
from retain.results.figures.style import COLOURS, image_files, new_figure, style_at
from retain.results.store.loss_table import Row
from retain.results.store.study_files import study_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 12
"""With more lines than these, no line is named."""
MOST_BARS = 100
"""More lines than these are drawn thin and without bars, because readers cannot tell them apart and each takes milliseconds."""
MOST_POINTS = 1000
"""More points than these are drawn as pixels in the SVG too."""


def draw_losses(store: Path, study: str, rows: Sequence[Row]) -> list[Path]:
    """Write losses.png and losses.svg of the finished trials; return their paths, none if no trial has a loss yet.

    Points are means over seeds; bars reach from the lowest to the highest seed.
    """
    trials = [row for row in rows if row[L_RET] is not None]
    if not trials:
        return []
    if not {EXPOSURE, METHOD} & set(axis_names(trials)):
        trials = [row | {"axes": {**row["axes"], EXPOSURE: 0.0}} for row in trials]
    stem = study_folder(store, study) / "losses"
    with new_figure(stem, (10.5, 4.8)) as figure:
        over, against = figure.subplots(1, 2)
        _over_exposure(over, trials)
        _against_finetuning(against, trials)
        missing = f"; {len(rows) - len(trials)} of {len(rows)} trials are missing" if len(trials) < len(rows) else ""
        figure.suptitle(f"{study}: what is left of post-training after fine-tuning{missing}")
    return list(image_files(stem))


def _over_exposure(axes: "Axes", trials: Sequence[Row]) -> None:
    over = EXPOSURE if EXPOSURE in axis_names(trials) else METHOD
    # Trials that differ in fine-tuning only share one L_im; the first one counts.
    immediate = {row["keys"]["posttrain"]: row for row in reversed(trials)}
    _lines(axes, {"after post-training (L_im)": list(immediate.values())}, L_IM, over, ["black"], "--")
    after = {f"after fine-tuning (L_ret), {name}": group for name, group in _by_label(trials, over).items()}
    _lines(axes, after, L_RET, over, COLOURS, "-")
    axes.set_xlabel(
        "exposure λ: share of the post-training corpus mixed into pretraining" if over == EXPOSURE else over
    )
    axes.set_ylabel("loss on held-out post-training text (nats per token)")


def _against_finetuning(axes: "Axes", trials: Sequence[Row]) -> None:
    there = axis_names(trials)
    along = next(axis for axis in (RATE, EXPOSURE, METHOD) if axis in there)
    curves = {}
    for name, group in _by_label(trials, RATE).items():
        means = [[_spread(own, loss)[0] for loss in (L_RET, L_FT)] for own in _by_value(group, along).values()]
        if means:
            curves[name] = [list(values) for values in zip(*sorted(means, key=itemgetter(0)), strict=True)]
    if len(curves) > MOST_BARS:
        _bundle(axes, list(curves.values()), COLOURS)
    else:
        for index, (name, (retained, finetuning)) in enumerate(curves.items()):
            axes.plot(retained, finetuning, label=name, rasterized=len(trials) > MOST_POINTS, **_line_style(index))
    axes.set_xlabel("L_ret: loss on held-out post-training text (nats per token)")
    axes.set_ylabel("L_ft: loss on held-out fine-tuning text (nats per token)")
    axes.set_title("lower left is better", fontsize=9)
    _legend(axes, "one point per fine-tuning rate")


def _lines(
    axes: "Axes", groups: Mapping[str, Sequence[Row]], loss: str, over: str, colours: Sequence[str], line: str
) -> None:
    """Draw one line for each group: the mean over seeds, with bars from the lowest to the highest."""
    curves = {}
    for name, group in groups.items():
        if points := _by_value(group, over):
            curves[name] = (list(points), *zip(*(_spread(own, loss) for own in points.values()), strict=True))
    if len(curves) > MOST_BARS and over == EXPOSURE:
        _bundle(axes, [(x, mean) for x, mean, _, _ in curves.values()], colours)
        return
    for index, (name, (x, mean, below, above)) in enumerate(curves.items()):
        style = _line_style(index) | {"color": colours[index % len(colours)], "linestyle": line}
        axes.errorbar(x, mean, [below, above], label=name, capsize=2, **style)
    _legend(axes, None)


def _by_value(trials: Iterable[Row], axis: str) -> dict[Any, list[Row]]:
    """The trials at each value of an axis, in the order of the values."""
    there = (row for row in trials if row["axes"].get(axis) is not None)
    return dict(sorted(grouped(there, lambda row: row["axes"][axis]).items(), key=itemgetter(0)))


def _by_label(trials: Sequence[Row], apart: str) -> dict[str, list[Row]]:
    """The trials by their values on the axes that vary, seeds and the axis `apart` left out; the exposure always counts."""
    names = [
        name
        for name in axis_names(trials)
        if name not in (apart, *SEEDS) and (name == EXPOSURE or len(axis_values(trials, name)) > 1)
    ]

    def label(row: Row) -> str:
        # A case that does not set an axis has no value there.
        named = [(name, value) for name in names if (value := row["axes"].get(name)) is not None]
        return ", ".join(f"{_short(name)}={_text(value)}" for name, value in named) or "all trials"

    return grouped(trials, label)


def _spread(trials: Iterable[Row], loss: str) -> tuple[float, float, float]:
    """The mean of a loss, and the distances to the lowest and the highest; nan if no trial has it."""
    mean, low, high = spread([row[loss] for row in trials if row[loss] is not None] or [nan])
    return mean, mean - low, high - mean


def _bundle(axes: "Axes", curves: Sequence[Sequence[Any]], colours: Sequence[str]) -> None:
    """Draw curves (x and y) without names and bars; all curves of one colour are one line with gaps."""
    import numpy

    for index, colour in enumerate(colours):
        own = curves[index :: len(colours)]
        x, y = (numpy.concatenate([[*curve[part], numpy.nan] for curve in own]) for part in (0, 1))
        axes.plot(x, y, color=colour, linewidth=0.4, marker=".", markersize=2, rasterized=True)


def _legend(axes: "Axes", title: str | None) -> None:
    import numpy

    if len(axes.get_legend_handles_labels()[1]) <= MOST_LINES:
        # matplotlib searches for the best place among all points.
        many = sum(numpy.size(line.get_xdata()) for line in axes.lines) > MOST_POINTS
        axes.legend(fontsize=8, title=title, title_fontsize=8, frameon=False, loc="upper right" if many else "best")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return {EXPOSURE: "λ", RATE: "lr"}.get(name, name)


def _line_style(index: int) -> dict[str, Any]:
    style = style_at(index)
    return {"color": style.colour, "marker": style.marker, "markersize": 5, "linewidth": 1.2}
