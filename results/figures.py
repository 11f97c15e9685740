"""The figure of a study: L_im and L_ret over exposure, and L_ret against L_ft for each exposure."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.drawing import COLOURS, MARKERS, save_figure, style
from results.losses import LOSSES, Row, frame_of, study_folder
from results.methods import SEEDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

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
    frame = frame_of(rows).dropna(subset=["retained_posttraining_loss"])
    if frame.empty:
        return []
    from matplotlib.figure import Figure

    if EXPOSURE not in frame and METHOD not in frame:
        frame[EXPOSURE] = 0.0
    with style():
        figure = Figure(figsize=(10.5, 4.8), layout="constrained")
        over, against = figure.subplots(1, 2)
        _over_exposure(over, frame)
        _against_finetuning(against, frame)
        missing = f"; {len(rows) - len(frame)} of {len(rows)} trials are missing" if len(frame) < len(rows) else ""
        figure.suptitle(f"{study}: what is left of post-training after fine-tuning{missing}")
        return list(save_figure(figure, study_folder(store, study) / "losses"))


def _over_exposure(axes: "Axes", frame: "DataFrame") -> None:
    over = EXPOSURE if EXPOSURE in frame else METHOD
    immediate = frame.drop_duplicates("posttrain_key").assign(group="after post-training (L_im)")
    others = [name for name in _axis_columns(frame) if name != over]
    lines = frame.assign(group=[_label(values, others) for values in frame[others].itertuples(index=False)])
    _lines(axes, immediate, "immediate_posttraining_loss", over, ["black"], "--")
    _lines(axes, lines, "retained_posttraining_loss", over, COLOURS, "-", "after fine-tuning (L_ret), ")
    axes.set_xlabel(
        "exposure λ: share of the post-training corpus mixed into pretraining" if over == EXPOSURE else over
    )
    axes.set_ylabel("loss on held-out post-training text (nats per token)")


def _against_finetuning(axes: "Axes", frame: "DataFrame") -> None:
    others = [name for name in _axis_columns(frame) if name != RATE]
    lines = frame.assign(group=[_label(values, others) for values in frame[others].itertuples(index=False)])
    along = next(name for name in (RATE, EXPOSURE, METHOD) if name in frame)
    means = lines.groupby(["group", along])[["retained_posttraining_loss", "finetuning_loss"]].mean()
    named = [name for name in lines["group"].unique() if name in means.index]
    curves = {name: means.loc[name].sort_values("retained_posttraining_loss") for name in named}
    if len(curves) > MOST_BARS:
        _bundle(axes, [(points.iloc[:, 0], points.iloc[:, 1]) for points in curves.values()], COLOURS)
    else:
        for index, (name, points) in enumerate(curves.items()):
            raster = len(frame) > MOST_POINTS
            axes.plot(points.iloc[:, 0], points.iloc[:, 1], label=name, rasterized=raster, **_style(index))
    axes.set_xlabel("L_ret: loss on held-out post-training text (nats per token)")
    axes.set_ylabel("L_ft: loss on held-out fine-tuning text (nats per token)")
    axes.set_title("lower left is better", fontsize=9)
    _legend(axes, "one point per fine-tuning rate")


def _lines(
    axes: "Axes", frame: "DataFrame", loss: str, over: str, colours: Sequence[str], line: str, prefix: str = ""
) -> None:
    """One line a group: the mean over seeds, with bars from the lowest to the highest."""
    spreads = frame.groupby(["group", over])[loss].agg(["mean", "min", "max"])
    curves = {name: spreads.loc[name] for name in frame["group"].unique() if name in spreads.index}
    if len(curves) > MOST_BARS and over == EXPOSURE:
        _bundle(axes, [(spread.index, spread["mean"]) for spread in curves.values()], colours)
        return
    for index, (name, spread) in enumerate(curves.items()):
        bars = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
        style = _style(index) | {"color": colours[index % len(colours)], "linestyle": line}
        axes.errorbar(spread.index, spread["mean"], bars, label=f"{prefix}{name}", capsize=2, **style)
    _legend(axes, None)


def _bundle(axes: "Axes", curves: Sequence[tuple[Any, Any]], colours: Sequence[str]) -> None:
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


def _axis_columns(frame: "DataFrame") -> list[str]:
    """The study's axes among the columns, without the seeds, that have more than one value or are the exposure."""
    others = (*LOSSES, "tokens", "group", *SEEDS)
    names = [name for name in frame.columns if name not in others and not name.endswith("_key")]
    return [name for name in names if name == EXPOSURE or frame[name].astype(str).nunique() > 1]


def _label(values: Iterable[Hashable], names: Sequence[str]) -> str:
    # A case without this axis has no value there (nan).
    named = [(name, value) for name, value in zip(names, values, strict=True) if value == value]
    return ", ".join(f"{_short(name)}={_text(value)}" for name, value in named) or "all trials"


def _text(value: Hashable) -> str:
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
