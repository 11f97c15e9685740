"""The figure of a linear study: what each stage learns and forgets, simulated, beside the closed forms of the theory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import EXPOSURE, SEEDS, axis_names, setting
from retain.results.analysis.linear_trials import KINDS, Simulated, Theory, read_theory, read_trial
from retain.results.analysis.loss_planes import L_RET
from retain.results.figures.style import (
    COLOURS,
    GREY,
    DrawnFigure,
    image_files,
    missing_trials,
    new_figure,
    style_at,
    trials_note,
)
from retain.results.store.loss_table import Row, csv_text
from retain.results.store.runs import Store
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text
from retain.sweeps.schema.linear.closed_forms import Numbers, flow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {kind: style_at(index) for index, kind in enumerate(KINDS)}
CLOSED: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0}
CURVE_POINTS = 400


def draw_theory(store: Path, study: str, rows: Sequence[Row], overrides: Sequence[str] = ()) -> list[Path]:
    """Write theory.png and theory.svg of the finished trials; return their paths, none if no trial is finished.

    If the study has further axes, only the trials that share the first finished one's values on them are drawn.
    """
    first = next((row for row in rows if row[L_RET] is not None), None)
    if first is None:
        return []
    others = [name for name in axis_names(rows) if name not in (EXPOSURE, *SEEDS)]
    mine = [row for row in rows if setting(row, others) == setting(first, others)]
    done = [row for row in mine if row[L_RET] is not None]
    theory = read_theory(Store(store), first)
    trials = sorted((read_trial(Store(store), row) for row in done), key=lambda trial: trial.alpha)
    stem = study_folder(store, study, overrides) / "theory"
    with new_figure(stem, (12.6, 7.6)) as figure:
        grid = figure.add_gridspec(2, 6)
        low, high = (figure.add_subplot(grid[0, 3 * index : 3 * index + 3]) for index in range(2))
        learned, moved, forgotten = (figure.add_subplot(grid[1, 2 * index : 2 * index + 2]) for index in range(3))
        _over_time(low, theory, trials[0])
        _over_time(high, theory, trials[-1])
        _learned(learned, theory, trials)
        _moved(moved, theory, trials)
        _forgotten(forgotten, theory, trials)
        deviation = max(trial.deviation() for trial in trials)
        fixed = ", ".join(
            f"{name.rpartition('.')[2]} = {value}" for name, value in first["axes"].items() if name in others
        )
        missing = f"; {missing_trials(len(mine) - len(done), len(mine))}" if len(done) < len(mine) else ""
        figure.suptitle(
            f"{study}{f' ({fixed})' if fixed else ''}: gradient descent (colours) and the closed forms (black, dashed), "
            f"at most {deviation:.2g} apart{missing}",
            fontsize=11,
        )
    return list(image_files(stem))


def theory_figures(store: Path, study: str, rows: Sequence[Row], overrides: Sequence[str] = ()) -> list[DrawnFigure]:
    """The figure of a linear study for its report, and its trials in theory.csv; empty if no trial is finished."""
    files = draw_theory(store, study, rows, overrides)
    if not files:
        return []
    png, svg = files
    missing = sum(row[L_RET] is None for row in rows)
    title = "Theory. Which features does pretraining learn as exposure crosses the threshold, and what is lost later?"
    note = trials_note(missing, len(rows))
    lines = "Colours: gradient descent on the two-layer linear model; black, dashed: the closed forms."
    caption = f"{note[0].upper()}{note[1:]}. {lines}"
    data = svg.with_suffix(".csv")
    write_text(data, csv_text(rows))
    return [DrawnFigure("theory", title, caption, png, svg, data, len(rows), missing)]


def _over_time(axes: "Axes", theory: Theory, trial: Simulated) -> None:
    descent, times, strengths = trial.stages["pretrain"]
    fine = [descent.time * index / CURVE_POINTS for index in range(CURVE_POINTS + 1)]
    exact = [flow(descent, strengths[0], time) for time in fine]
    for index, kind in enumerate(theory.kinds):
        simulated = [row[index] for row in strengths]
        axes.plot(times, simulated, color=STYLES[kind].colour, linewidth=4, alpha=0.55, label=kind)
        axes.plot(fine, [row[index] for row in exact], **CLOSED)
    where = "no threshold"
    if theory.thresholds:
        where = "above α*" if trial.alpha > max(theory.thresholds) else "below α*"
    axes.set_title(f"Pretraining at α = {trial.alpha:g} ({where}): {_learned_kinds(theory, trial)}")
    axes.set_xlabel(f"time of the flow; the right end is the stopping time {descent.time:.4g}")
    axes.set_ylabel("strength of a feature, uᵀW₁W₂v")
    _legend(axes, loc="center right", bbox_to_anchor=(1.0, 0.33))


def _learned_kinds(theory: Theory, trial: Simulated) -> str:
    """The kinds whose features all have more than half of their target at the stopping time, as text."""
    targets = trial.stages["pretrain"][0].task.targets
    ends = list(zip(theory.kinds, trial.strengths("pretrain"), targets, strict=True))
    learned = [kind for kind in KINDS if all(end > target / 2 > 0 for name, end, target in ends if name == kind)]
    return f"learns {' and '.join(learned) or 'nothing'}"


def _learned(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    _over_alpha(axes, theory, trials, lambda trial: trial.strengths("pretrain"), lambda alpha: theory.ends(alpha)[0])
    axes.set_title("What pretraining has learned when it stops")
    axes.set_ylabel("strength at the stopping time")
    _legend(axes, loc="best")


def _moved(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    def simulated(trial: Simulated) -> Numbers:
        return tuple(np.subtract(trial.strengths("posttrain"), trial.strengths("pretrain")))

    def exact(alpha: float) -> Numbers:
        before, after, _ = theory.ends(alpha)
        return tuple(np.subtract(after, before))

    _over_alpha(axes, theory, trials, simulated, exact)
    axes.set_title("What post-training moves")
    axes.set_ylabel("change of strength in post-training")
    _legend(axes, loc="best")


def _forgotten(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    fine = _exposures(trials)
    alphas = [trial.alpha for trial in trials]
    lines = (
        ("Δ = L(θ_ft) − L(θ_post) on D_post", COLOURS[5], "o", theory.forgotten, [t.forgotten for t in trials]),
        ("L(θ_ft) on D_ft: the price", COLOURS[3], "X", theory.finetuning_loss, [t.finetuning_loss for t in trials]),
    )
    for label, colour, marker, exact, values in lines:
        axes.plot(fine, [exact(alpha) for alpha in fine], **CLOSED)
        axes.plot(alphas, values, marker, color=colour, markersize=6, label=label)
    axes.set_title("What fine-tuning makes forget")
    axes.set_ylabel("squared loss")
    _mark_thresholds(axes, theory)
    _legend(axes, loc="best")


def _over_alpha(
    axes: "Axes",
    theory: Theory,
    trials: Sequence[Simulated],
    simulated: Callable[[Simulated], Sequence[float]],
    exact: Callable[[float], Sequence[float]],
) -> None:
    """Draw one number of every feature over α: trials as points, closed forms as lines."""
    fine = _exposures(trials)
    curves = [exact(alpha) for alpha in fine]
    points = [simulated(trial) for trial in trials]
    alphas = [trial.alpha for trial in trials]
    for index, kind in enumerate(theory.kinds):
        axes.plot(fine, [curve[index] for curve in curves], **CLOSED)
        style, values = STYLES[kind], [point[index] for point in points]
        axes.plot(alphas, values, style.marker, color=style.colour, markersize=6, alpha=0.8, label=kind)
    _mark_thresholds(axes, theory)


def _exposures(trials: Sequence[Simulated]) -> list[float]:
    low, high = trials[0].alpha, trials[-1].alpha
    return [low + (high - low) * index / CURVE_POINTS for index in range(CURVE_POINTS + 1)] if high > low else [low]


def _mark_thresholds(axes: "Axes", theory: Theory) -> None:
    """Mark the whole model's α*, that of the last inconsistent feature, with a band from α* of the first."""
    axes.set_xlabel("exposure α: share of D_post in pretraining")
    if theory.thresholds:
        first, last = min(theory.thresholds), max(theory.thresholds)
        axes.axvspan(first, last, color=GREY, alpha=0.2, linewidth=0)
        axes.axvline(last, color=GREY, linewidth=1)
        axes.annotate(
            f"α* = {last:.3f}",
            (last, 0.36),
            (-8, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="center",
            color=GREY,
        )


def _legend(axes: "Axes", **place: Any) -> None:
    """Add a legend with each name once."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", **place)
