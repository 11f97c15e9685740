"""The figure of a linear study: what each stage learns and forgets, simulated, beside the closed forms of the theory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import EXPOSURE, axis_names, is_seed, setting
from retain.results.analysis.linear_trials import KINDS, Simulated, Theory, read_theory, read_trial
from retain.results.analysis.loss_planes import L_RET
from retain.results.figures.drawing import draw_axes
from retain.results.figures.style import (
    GREY,
    INK,
    Drawing,
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
LOSS_STYLES = {"Δ = L(θ_ft) − L(θ_post) on D_post": style_at(5), "L(θ_ft) on D_ft: the price": style_at(3)}
CLOSED: dict[str, Any] = {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1.0}
CURVE_POINTS = 400


@dataclass(frozen=True)
class _Drawn:
    """What a figure of the theory shows."""

    theory: Theory
    trials: Sequence[Simulated]
    """By exposure."""
    fixed: str
    """The values on further axes, which all its trials share."""
    missing: str
    """How many of its trials are missing; empty if none is."""

    @property
    def deviation(self) -> float:
        """The largest distance of a simulation from its closed form."""
        return max(trial.deviation() for trial in self.trials)

    def panels(self) -> list[Callable[["Axes"], None]]:
        """What draws each of the five panels."""
        theory, trials = self.theory, self.trials
        return [
            lambda axes: _over_time(axes, theory, trials[0]),
            lambda axes: _over_time(axes, theory, trials[-1]),
            lambda axes: _learned(axes, theory, trials),
            lambda axes: _moved(axes, theory, trials),
            lambda axes: _forgotten(axes, theory, trials),
        ]

    def titles(self) -> list[str]:
        """The title of each panel."""
        return [
            *(_title_over_time(self.theory, trial) for trial in (self.trials[0], self.trials[-1])),
            "What pretraining has learned when it stops",
            "What post-training moves",
            "What fine-tuning makes forget",
        ]


def _read(store: Path, rows: Sequence[Row]) -> _Drawn | None:
    """The finished trials with the first one's values on all axes but exposure and seeds; None if none is finished."""
    first = next((row for row in rows if row[L_RET] is not None), None)
    if first is None:
        return None
    others = [name for name in axis_names(rows) if name != EXPOSURE and not is_seed(name)]
    mine = [row for row in rows if setting(row, others) == setting(first, others)]
    done = [row for row in mine if row[L_RET] is not None]
    trials = sorted((read_trial(Store(store), row) for row in done), key=lambda trial: trial.alpha)
    fixed = ", ".join(f"{name.rpartition('.')[2]} = {value}" for name, value in first["axes"].items() if name in others)
    missing = missing_trials(len(mine) - len(done), len(mine)) if len(done) < len(mine) else ""
    return _Drawn(read_theory(Store(store), first), trials, fixed, missing)


def draw_theory(store: Path, study: str, rows: Sequence[Row], overrides: Sequence[str] = ()) -> list[Path]:
    """Write theory.png and theory.svg of the finished trials; return their paths, none if no trial is finished.

    If the study has further axes, only the trials that share the first finished one's values on them are drawn.
    """
    drawn = _read(store, rows)
    return [] if drawn is None else _write(study_folder(store, study, overrides) / "theory", study, drawn)


def _write(stem: Path, study: str, drawn: _Drawn) -> list[Path]:
    with new_figure(stem, (12.6, 7.6)) as figure:
        grid = figure.add_gridspec(2, 6)
        places = [grid[0, 0:3], grid[0, 3:6], grid[1, 0:2], grid[1, 2:4], grid[1, 4:6]]
        for place, draw, title in zip(places, drawn.panels(), drawn.titles(), strict=True):
            axes = figure.add_subplot(place)
            draw(axes)
            axes.set_title(title)
            _legend(axes)
        figure.suptitle(
            f"{study}{f' ({drawn.fixed})' if drawn.fixed else ''}: gradient descent (colours) and the closed forms (dashed), "
            f"at most {drawn.deviation:.2g} apart{f'; {drawn.missing}' if drawn.missing else ''}",
            fontsize=11,
        )
    return list(image_files(stem))


def theory_figures(store: Path, study: str, rows: Sequence[Row], overrides: Sequence[str] = ()) -> list[DrawnFigure]:
    """The figure of a linear study for its report, and its trials in theory.csv; empty if no trial is finished."""
    drawn = _read(store, rows)
    if drawn is None:
        return []
    png, svg = _write(study_folder(store, study, overrides) / "theory", study, drawn)
    missing = sum(row[L_RET] is None for row in rows)
    title = "Theory. Which features does pretraining learn as exposure crosses the threshold, and what is lost later?"
    note = trials_note(missing, len(rows))
    lines = "Colours: gradient descent on the two-layer linear model; dashed: the closed forms"
    where = f" Shown: trials with {drawn.fixed}." if drawn.fixed else ""
    caption = f"{note[0].upper()}{note[1:]}. {lines}, at most {drawn.deviation:.2g} apart.{where}"
    data = svg.with_suffix(".csv")
    write_text(data, csv_text(rows))
    kinds = tuple((kind, style, False) for kind, style in STYLES.items())
    losses = tuple((label, style, False) for label, style in LOSS_STYLES.items())
    panels = [
        Drawing(name, draw_axes(f"theory-{number}", f"{title}: {name}", draw), losses if number == 4 else kinds)
        for number, (name, draw) in enumerate(zip(drawn.titles(), drawn.panels(), strict=True))
    ]
    return [DrawnFigure("theory", title, caption, png, svg, data, len(rows), missing, tuple(panels))]


def _over_time(axes: "Axes", theory: Theory, trial: Simulated) -> None:
    descent, times, strengths = trial.stages["pretrain"]
    fine = [descent.time * index / CURVE_POINTS for index in range(CURVE_POINTS + 1)]
    exact = [flow(descent, strengths[0], time) for time in fine]
    for index, kind in enumerate(theory.kinds):
        simulated = [row[index] for row in strengths]
        axes.plot(times, simulated, color=STYLES[kind].colour, linewidth=4, alpha=0.55, label=kind)
        axes.plot(fine, [row[index] for row in exact], **CLOSED)
    axes.set_xlabel(f"time of the flow, to the stopping time {descent.time:.4g}")
    axes.set_ylabel("strength of a feature, uᵀW₁W₂v")


def _title_over_time(theory: Theory, trial: Simulated) -> str:
    where = "no threshold"
    if theory.thresholds:
        where = "above α*" if trial.alpha > max(theory.thresholds) else "below α*"
    return f"Pretraining at α = {trial.alpha:g} ({where}): {_learned_kinds(theory, trial)}"


def _learned_kinds(theory: Theory, trial: Simulated) -> str:
    """The kinds whose features all have more than half of their target at the stopping time, as text."""
    targets = trial.stages["pretrain"][0].task.targets
    ends = list(zip(theory.kinds, trial.strengths("pretrain"), targets, strict=True))
    learned = [kind for kind in KINDS if all(end > target / 2 > 0 for name, end, target in ends if name == kind)]
    return f"learns {' and '.join(learned) or 'nothing'}"


def _learned(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    _over_alpha(axes, theory, trials, lambda trial: trial.strengths("pretrain"), lambda alpha: theory.ends(alpha)[0])
    axes.set_ylabel("strength at the stopping time")


def _moved(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    def simulated(trial: Simulated) -> Numbers:
        return tuple(np.subtract(trial.strengths("posttrain"), trial.strengths("pretrain")))

    def exact(alpha: float) -> Numbers:
        before, after, _ = theory.ends(alpha)
        return tuple(np.subtract(after, before))

    _over_alpha(axes, theory, trials, simulated, exact)
    axes.set_ylabel("change of strength in post-training")


def _forgotten(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    fine = _exposures(trials)
    alphas = [trial.alpha for trial in trials]
    lines = (
        (theory.forgotten, [trial.forgotten for trial in trials]),
        (theory.finetuning_loss, [trial.finetuning_loss for trial in trials]),
    )
    for (label, style), (exact, values) in zip(LOSS_STYLES.items(), lines, strict=True):
        axes.plot(fine, [exact(alpha) for alpha in fine], **CLOSED)
        axes.plot(alphas, values, linestyle="none", label=label, **style.points)
    axes.set_ylabel("squared loss")
    _mark_thresholds(axes, theory)


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
        axes.plot(alphas, values, linestyle="none", alpha=0.8, label=kind, **style.points)
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


def _legend(axes: "Axes") -> None:
    """Add a legend with each name once, below the axes, where it covers no data."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": len(handles)}
    axes.legend(handles.values(), handles.keys(), fontsize=8, frameon=False, **place)
