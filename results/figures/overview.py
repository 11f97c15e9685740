"""The figure of a study: L_im and L_ret over exposure, and L_ret against L_ft for each exposure."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import nan
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from retain.results.analysis.methods import SEEDS
from retain.results.figures.style import COLOURS, MARKERS, save_figure, style
from retain.results.store.loss_table import LOSSES, Row, flat_row
from retain.results.store.study_files import study_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPOSURE = "pretrain.exposure"
METHOD = "method"
RATE = "finetune.lr"
MOST_LINES = 12
"""More lines than these are drawn without names."""
MOST_BARS = 100
"""More lines than these are drawn thin and without bars: nobody tells them apart, and each takes milliseconds."""
MOST_POINTS = 1000
"""More points than these are pixels in the SVG too."""


def draw_losses(store: Path, study: str, rows: Sequence[Row]) -> list[Path]:
    """Write losses.png and losses.svg of what is there so far; returns their paths, none where no trial has a loss yet.

    Points are means over seeds, bars reach from the lowest to the highest seed.
    """
    trials = [flat_row(row) for row in rows if row["retained_posttraining_loss"] is not None]
    if not trials:
        return []
    from matplotlib.figure import Figure

    if not _has(trials, EXPOSURE) and not _has(trials, METHOD):
        trials = [{**trial, EXPOSURE: 0.0} for trial in trials]
    with style():
        figure = Figure(figsize=(10.5, 4.8), layout="constrained")
        over, against = figure.subplots(1, 2)
        _over_exposure(over, trials)
        _against_finetuning(against, trials)
        missing = f"; {len(rows) - len(trials)} of {len(rows)} trials are missing" if len(trials) < len(rows) else ""
        figure.suptitle(f"{study}: what is left of post-training after fine-tuning{missing}")
        return list(save_figure(figure, study_folder(store, study) / "losses"))


def _over_exposure(axes: "Axes", trials: Sequence[Row]) -> None:
    over = EXPOSURE if _has(trials, EXPOSURE) else METHOD
    immediate = {trial["posttrain_key"]: trial for trial in reversed(trials)}
    before = {"after post-training (L_im)": list(immediate.values())}
    _lines(axes, before, "immediate_posttraining_loss", over, ["black"], "--")
    after = {f"after fine-tuning (L_ret), {name}": group for name, group in _groups(trials, over).items()}
    _lines(axes, after, "retained_posttraining_loss", over, COLOURS, "-")
    axes.set_xlabel(
        "exposure λ: share of the post-training corpus mixed into pretraining" if over == EXPOSURE else over
    )
    axes.set_ylabel("loss on held-out post-training text (nats per token)")


def _against_finetuning(axes: "Axes", trials: Sequence[Row]) -> None:
    along = next(name for name in (RATE, EXPOSURE, METHOD) if _has(trials, name))
    curves = {}
    for name, group in _groups(trials, RATE).items():
        seeds = _along(group, along).values()
        means = [[_spread(own, loss)[0] for loss in ("retained_posttraining_loss", "finetuning_loss")] for own in seeds]
        if means:
            curves[name] = [list(values) for values in zip(*sorted(means, key=itemgetter(0)), strict=True)]
    if len(curves) > MOST_BARS:
        _bundle(axes, list(curves.values()), COLOURS)
    else:
        for index, (name, (retained, finetuning)) in enumerate(curves.items()):
            axes.plot(retained, finetuning, label=name, rasterized=len(trials) > MOST_POINTS, **_style(index))
    axes.set_xlabel("L_ret: loss on held-out post-training text (nats per token)")
    axes.set_ylabel("L_ft: loss on held-out fine-tuning text (nats per token)")
    axes.set_title("lower left is better", fontsize=9)
    _legend(axes, "one point per fine-tuning rate")


def _lines(
    axes: "Axes", groups: Mapping[str, Sequence[Row]], loss: str, over: str, colours: Sequence[str], line: str
) -> None:
    """One line a group: the mean over seeds, with bars from the lowest to the highest."""
    curves = {}
    for name, group in groups.items():
        if points := _along(group, over):
            curves[name] = (list(points), *zip(*(_spread(own, loss) for own in points.values()), strict=True))
    if len(curves) > MOST_BARS and over == EXPOSURE:
        _bundle(axes, [(x, mean) for x, mean, _, _ in curves.values()], colours)
        return
    for index, (name, (x, mean, below, above)) in enumerate(curves.items()):
        style = _style(index) | {"color": colours[index % len(colours)], "linestyle": line}
        axes.errorbar(x, mean, [below, above], label=name, capsize=2, **style)
    _legend(axes, None)


def _along(trials: Iterable[Row], axis: str) -> dict[Any, list[Row]]:
    """The trials at each value of an axis, in the order of the values."""
    there: dict[Any, list[Row]] = {}
    for trial in trials:
        if trial.get(axis) is not None:
            there.setdefault(trial[axis], []).append(trial)
    return dict(sorted(there.items(), key=itemgetter(0)))


def _spread(trials: Iterable[Row], loss: str) -> tuple[float, float, float]:
    """The mean of a loss, and how far the lowest and the highest are from it; nan where none is there."""
    values = [trial[loss] for trial in trials if trial[loss] is not None] or [nan]
    mean = fmean(values)
    return mean, mean - min(values), max(values) - mean


def _bundle(axes: "Axes", curves: Sequence[Sequence[Any]], colours: Sequence[str]) -> None:
    """Curves (their x and y) without names and bars, those of one colour as one line with gaps."""
    import numpy

    for index, colour in enumerate(colours):
        own = curves[index :: len(colours)]
        x, y = (numpy.concatenate([[*curve[part], numpy.nan] for curve in own]) for part in (0, 1))
        axes.plot(x, y, color=colour, linewidth=0.4, marker=".", markersize=2, rasterized=True)


def _legend(axes: "Axes", title: str | None) -> None:
    import numpy

    if len(axes.get_legend_handles_labels()[1]) <= MOST_LINES:
        # The best place is searched for among all points.
        many = sum(numpy.size(line.get_xdata()) for line in axes.lines) > MOST_POINTS
        axes.legend(fontsize=8, title=title, title_fontsize=8, frameon=False, loc="upper right" if many else "best")


def _has(trials: Iterable[Row], axis: str) -> bool:
    return any(axis in trial for trial in trials)


def _groups(trials: Sequence[Row], apart: str) -> dict[str, list[Row]]:
    """The trials by the label of their axes, the axis `apart` left out."""
    names = [name for name in _axis_names(trials) if name != apart]
    groups: dict[str, list[Row]] = {}
    for trial in trials:
        groups.setdefault(_label(trial, names), []).append(trial)
    return groups


def _axis_names(trials: Sequence[Row]) -> list[str]:
    """The study's axes, without the seeds, that have more than one value or are the exposure."""
    others = (*LOSSES, "tokens", *SEEDS)
    names = dict.fromkeys(name for trial in trials for name in trial)
    axes = [name for name in names if name not in others and not name.endswith("_key")]
    return [name for name in axes if name == EXPOSURE or len(_values(trials, name)) > 1]


def _values(trials: Iterable[Row], axis: str) -> set[Hashable]:
    """The different values of an axis; one with several fields as text."""
    there = (value for trial in trials if (value := trial.get(axis)) is not None)
    return {value if isinstance(value, Hashable) else str(value) for value in there}


def _label(trial: Row, names: Iterable[str]) -> str:
    # A case without this axis has no value there.
    named = [(name, value) for name in names if (value := trial.get(name)) is not None]
    return ", ".join(f"{_short(name)}={_text(value)}" for name, value in named) or "all trials"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return {EXPOSURE: "λ", RATE: "lr"}.get(name, name)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.2,
    }
