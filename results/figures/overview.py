"""The overview figure of any study: L_im and L_ret over exposure, and L_ft against L_ret."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import EXPOSURE, METHOD, RATE, SEEDS, axis_names, axis_values, grouped
from retain.results.analysis.loss_planes import L_FT, L_IM, L_RET
from retain.results.figures.series import mean_curve
from retain.results.figures.style import COLOURS, image_files, missing_trials, new_figure, style_at
from retain.results.store.loss_table import Row, start_of_finetuning
from retain.results.store.study_files import study_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORT_NAMES = {EXPOSURE: "λ", RATE: "lr"}
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
        missing = f"; {missing_trials(len(rows) - len(trials), len(rows))}" if len(trials) < len(rows) else ""
        figure.suptitle(f"{study}: what is left of post-training after fine-tuning{missing}")
    return list(image_files(stem))


def _over_exposure(axes: "Axes", trials: Sequence[Row]) -> None:
    over = EXPOSURE if EXPOSURE in axis_names(trials) else METHOD
    # Trials that differ in fine-tuning only share one L_im; the first one counts.
    immediate = {start_of_finetuning(row): row for row in reversed(trials)}
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
        retained, finetuning = ([mean for _, mean, _, _ in _curve(group, loss, along)] for loss in (L_RET, L_FT))
        if retained:
            curves[name] = list(zip(*sorted(zip(retained, finetuning, strict=True), key=itemgetter(0)), strict=True))
    if len(curves) > MOST_BARS:
        _bundle(axes, list(curves.values()), COLOURS)
    else:
        for index, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, label=name, rasterized=len(trials) > MOST_POINTS, **_line_style(index))
    axes.set_xlabel("L_ret: loss on held-out post-training text (nats per token)")
    axes.set_ylabel("L_ft: loss on held-out fine-tuning text (nats per token)")
    axes.set_title("lower left is better", fontsize=9)
    _legend(axes, "one point per fine-tuning rate")


def _lines(
    axes: "Axes", groups: Mapping[str, Sequence[Row]], loss: str, over: str, colours: Sequence[str], line: str
) -> None:
    """Draw one line for each group: the mean over seeds, with bars from the lowest to the highest."""
    curves = {
        name: list(zip(*curve, strict=True)) for name, group in groups.items() if (curve := _curve(group, loss, over))
    }
    if len(curves) > MOST_BARS and over == EXPOSURE:
        _bundle(axes, list(curves.values()), colours)
        return
    for index, (name, (x, mean, low, high)) in enumerate(curves.items()):
        style = _line_style(index) | {"color": colours[index % len(colours)], "linestyle": line}
        axes.errorbar(x, mean, [np.subtract(mean, low), np.subtract(high, mean)], label=name, capsize=2, **style)
    _legend(axes, None)


def _curve(trials: Iterable[Row], loss: str, axis: str) -> list[tuple[Any, float, float, float]]:
    """(value, mean, lowest, highest) of a loss at each value of an axis."""
    there = (row for row in trials if row["axes"].get(axis) is not None)
    return mean_curve((row["axes"][axis], row[loss]) for row in there)


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
        text = ", ".join(f"{SHORT_NAMES.get(name, name)}={_text(value)}" for name, value in named) or "all trials"
        return f" {text}" if text.startswith("_") else text  # matplotlib hides labels that begin with _

    return grouped(trials, label)


def _bundle(axes: "Axes", curves: Sequence[Sequence[Any]], colours: Sequence[str]) -> None:
    """Draw curves (x and y) without names and bars; all curves of one colour are one line with gaps."""
    for index, colour in enumerate(colours):
        own = curves[index :: len(colours)]
        x, y = (np.concatenate([[*curve[part], np.nan] for curve in own]) for part in (0, 1))
        axes.plot(x, y, color=colour, linewidth=0.4, marker=".", markersize=2, rasterized=True)


def _legend(axes: "Axes", title: str | None) -> None:
    if len(axes.get_legend_handles_labels()[1]) <= MOST_LINES:
        # matplotlib searches for the best place among all points.
        many = sum(np.size(line.get_xdata()) for line in axes.lines) > MOST_POINTS
        axes.legend(fontsize=8, title=title, title_fontsize=8, frameon=False, loc="upper right" if many else "best")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line_style(index: int) -> dict[str, Any]:
    style = style_at(index)
    return {"color": style.colour, "marker": style.marker, "markersize": 5, "linewidth": 1.2}
