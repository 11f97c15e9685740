"""The overview figure of any study: L_im and L_ret over exposure, and the frontier of L_ret against L_ft."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import EXPOSURE, METHOD, RATE, axis_names, axis_values, grouped, is_seed, varied_axes
from retain.results.analysis.loss_planes import L_FT, L_IM, L_RET
from retain.results.analysis.methods import setting_axes, setting_name, with_pipelines
from retain.results.figures.catalogue import AXIS_LABELS
from retain.results.figures.series import before_finetuning, mean_curve
from retain.results.figures.style import (
    GREY,
    INK,
    MARKERS,
    MOST_LINES,
    LineStyle,
    image_files,
    line_styles,
    missing_trials,
    new_figure,
    small_multiples,
)
from retain.results.store.loss_table import Row, chain_of, stages_after_posttraining
from retain.results.store.study_files import study_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MULTIPLES = 3
"""Lines that need more small multiples than these are drawn thin, grey and without names, because readers cannot tell them
apart and each takes milliseconds."""

Groups = Mapping[str, Sequence[Row]]
"""The trials of each line, by its name."""


def draw_losses(store: Path, study: str, rows: Sequence[Row]) -> list[Path]:
    """Write losses.png and losses.svg of the finished trials; return their paths, none if no trial has a loss yet.

    Points are means over seeds; bars reach from the lowest to the highest seed. More than ten lines are drawn as small
    multiples of at most ten lines each, on shared axes.
    """
    trials = [row for row in rows if row[L_RET] is not None]
    if not trials:
        return []
    over, rate = _upstream_axis(trials), _swept_rate(trials)
    if not over:
        over = EXPOSURE
        trials = [row | {"axes": {**row["axes"], EXPOSURE: 0.0}} for row in trials]
    trials = with_pipelines(trials)
    naming = _naming_axes(trials, over)
    upper, lower = _multiples(_by_label(trials, naming)), _multiples(_by_label(trials, _naming_axes(trials, rate)))
    later = stages_after_posttraining(chain_of(trials[0]))
    before = [name for name in naming if name.partition(".")[0] not in later]
    beside = len(upper) == len(lower) == 1
    columns = max(len(upper), len(lower), 2 if beside else 1)
    stem = study_folder(store, study) / "losses"
    # Legends are below the axes: columns are as wide as their longest name, rows as high as their longest legend.
    named = [name for groups in (*upper, *lower) if len(groups) <= MOST_LINES for name in groups]
    width = max(5.2 if beside else 4.0, 0.075 * max(map(len, named), default=0) + 2.6)
    legends = [len(groups) + len(_before(groups, before)) for groups in upper if len(groups) <= MOST_LINES]
    lines = max([*legends, *(len(groups) for groups in lower if len(groups) <= MOST_LINES)], default=1)
    height = (3.9 + 0.19 * lines) * (1 if beside else 2)
    with new_figure(stem, (width * columns, height)) as figure:
        places = figure.subplots(1 if beside else 2, columns, squeeze=False)
        first, second = (list(places[0][:1]), list(places[0][1:])) if beside else map(list, places)
        for axes, groups in zip(first, upper, strict=False):
            _over_exposure(axes, groups, over, before)
        for axes, groups in zip(second, lower, strict=False):
            _against_finetuning(axes, groups, rate, over)
        for row, multiples in ((first, upper), (second, lower)):
            for unused in row[len(multiples) :]:
                unused.set_visible(False)
            for other in row[1 : len(multiples)]:
                other.sharex(row[0])
                other.sharey(row[0])
            row[0].autoscale()
        missing = f"; {missing_trials(len(rows) - len(trials), len(rows))}" if len(trials) < len(rows) else ""
        figure.suptitle(f"{study}: what is left of post-training after fine-tuning{missing}")
    return list(image_files(stem))


def _upstream_axis(trials: Sequence[Row]) -> str | None:
    """The axis over which L_im and L_ret are drawn: the exposure, the method, or else the first setting that can be one."""
    there = axis_names(trials)
    if found := [name for name in (EXPOSURE, METHOD) if name in there]:
        return found[0]
    for name in setting_axes(trials):
        values = axis_values(trials, name)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if numbers or all(isinstance(value, str) for value in values):
            return name
    return None


def _swept_rate(trials: Sequence[Row]) -> str:
    """The learning rate that a line is swept over: that of fine-tuning, or else the last one that varies."""
    rates = [name for name in varied_axes(trials) if name.endswith(".lr")]
    return RATE if RATE in rates or not rates else rates[-1]


def _multiples(groups: Groups) -> list[Groups]:
    """The lines of each of the small multiples; all in one if there are too many."""
    names = list(groups)
    if len(names) > MOST_LINES * MOST_MULTIPLES:
        return [groups]
    return [{name: groups[name] for name in part} for part in small_multiples(names)]


def _before(groups: Groups, naming: Sequence[str]) -> Groups:
    """The states before fine-tuning of these lines, by their values on the axes `naming`: those that L_im may depend on."""
    states = before_finetuning(row for group in groups.values() for row in group)
    by_label = _by_label(states, naming)
    return {f"after post-training (L_im){f', {name}' if naming else ''}": own for name, own in by_label.items()}


def _over_exposure(axes: "Axes", groups: Groups, over: str, before: Sequence[str]) -> None:
    """Draw L_im, a line for each setting of the axes `before`, and L_ret, a line for each group."""
    from matplotlib.ticker import EngFormatter

    after = {f"after fine-tuning (L_ret), {name}": _curve(group, L_RET, over) for name, group in groups.items()}
    if len(after) > MOST_LINES:
        _bundle(axes, [list(zip(*curve, strict=True))[:2] for curve in after.values() if curve])
    else:
        styles = line_styles(list(after))
        for (name, states), marker in zip(_before(groups, before).items(), itertools.cycle(MARKERS)):
            _line(axes, name, _curve(states, L_IM, over), LineStyle(INK, marker, hollow=True), "--")
        for name, curve in after.items():
            _line(axes, name, curve, styles[name], "-")
    axes.set_xlabel("exposure λ: share of D_post mixed into pretraining" if over == EXPOSURE else over)
    if over.endswith("tokens"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("post-training loss (nats per token)")
    _legend(axes)


def _against_finetuning(axes: "Axes", groups: Groups, rate: str, over: str) -> None:
    curves = {}
    for name, group in groups.items():
        along = rate if rate in axis_names(group) else over
        finetuning, retained = ([mean for _, mean, _, _ in _curve(group, loss, along)] for loss in (L_FT, L_RET))
        if retained:
            curves[name] = list(zip(*sorted(zip(finetuning, retained, strict=True), key=itemgetter(0)), strict=True))
    if len(curves) > MOST_LINES:
        _bundle(axes, list(curves.values()))
    else:
        styles = line_styles(list(curves))
        for name, (x, y) in curves.items():
            axes.plot(x, y, label=name, color=styles[name].colour, linewidth=1.2, **styles[name].points)
    axes.set_xlabel(AXIS_LABELS[L_FT])
    axes.set_ylabel(AXIS_LABELS[L_RET])
    points = "fine-tuning rate" if rate == RATE else f"value of {rate}"
    axes.set_title(f"lower left is better; one point per {points}", fontsize=9)
    _legend(axes)


def _line(axes: "Axes", name: str, curve: Sequence[Any], style: LineStyle, line: str) -> None:
    """Draw the mean over seeds, with bars from the lowest to the highest."""
    if curve:
        x, mean, low, high = zip(*curve, strict=True)
        shape: dict[str, Any] = {"color": style.colour, "linestyle": line, "linewidth": 1.2, "capsize": 2}
        axes.errorbar(x, mean, [np.subtract(mean, low), np.subtract(high, mean)], label=name, **shape, **style.points)


def _curve(trials: Iterable[Row], loss: str, axis: str) -> list[tuple[Any, float, float, float]]:
    """(value, mean, lowest, highest) of a loss at each value of an axis."""
    there = (row for row in trials if row["axes"].get(axis) is not None)
    return mean_curve((row["axes"][axis], row[loss]) for row in there)


def _naming_axes(trials: Sequence[Row], apart: str) -> list[str]:
    """The axes that vary and name lines, without seeds and the axis `apart`; the exposure always counts."""
    return [
        name
        for name in axis_names(trials)
        if name != apart and not is_seed(name) and (name == EXPOSURE or len(axis_values(trials, name)) > 1)
    ]


def _by_label(trials: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """The trials by their values on the axes `names`."""

    def label(row: Row) -> str:
        text = setting_name(row, names)
        return f" {text}" if text.startswith("_") else text  # matplotlib hides labels that begin with _

    return grouped(trials, label)


def _bundle(axes: "Axes", curves: Sequence[Sequence[Any]]) -> None:
    """Draw curves (x and y) without names and bars, as one line with gaps; on an axis of names, as points."""
    for part in (0, 1):
        if any(isinstance(value, str) for curve in curves for value in curve[part]):
            for x, y in curves:
                axes.plot(x, y, ".", color=GREY, markersize=2)
            return
    x, y = (np.concatenate([[*curve[part], np.nan] for curve in curves]) for part in (0, 1))
    axes.plot(x, y, color=GREY, linewidth=0.4, marker=".", markersize=2, rasterized=True)
    axes.set_title(f"{len(curves):,} lines", loc="right", fontsize=9, color=GREY)


def _legend(axes: "Axes") -> None:
    """A legend below the axes, where it covers no data."""
    if axes.get_legend_handles_labels()[1]:
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axes.legend(fontsize=8, frameon=False, **place)
