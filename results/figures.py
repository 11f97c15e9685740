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
    for index, (name, group) in enumerate(lines.groupby("group", sort=False)):
        points = group.groupby(next(name for name in (RATE, EXPOSURE, METHOD) if name in group))[
            ["retained_posttraining_loss", "finetuning_loss"]
        ].mean()
        points = points.sort_values("retained_posttraining_loss")
        axes.plot(points.iloc[:, 0], points.iloc[:, 1], label=str(name), **_style(index))
    axes.set_xlabel("L_ret: loss on held-out post-training text (nats per token)")
    axes.set_ylabel("L_ft: loss on held-out fine-tuning text (nats per token)")
    axes.set_title("lower left is better", fontsize=9)
    _legend(axes, "one point per fine-tuning rate")


def _lines(
    axes: "Axes", frame: "DataFrame", loss: str, over: str, colours: Sequence[str], line: str, prefix: str = ""
) -> None:
    """One line a group: the mean over seeds, with bars from the lowest to the highest."""
    for index, (name, group) in enumerate(frame.groupby("group", sort=False)):
        spread = group.groupby(over)[loss].agg(["mean", "min", "max"])
        bars = [spread["mean"] - spread["min"], spread["max"] - spread["mean"]]
        style = _style(index) | {"color": colours[index % len(colours)], "linestyle": line}
        axes.errorbar(spread.index, spread["mean"], bars, label=f"{prefix}{name}", capsize=2, **style)
    _legend(axes, None)


def _legend(axes: "Axes", title: str | None) -> None:
    if len(axes.get_legend_handles_labels()[1]) <= MOST_LINES:
        axes.legend(fontsize=8, title=title, title_fontsize=8, frameon=False)


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
