"""The figure of a linear study: what each stage learns and loses, simulated, beside the closed forms of the theory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.results.figures.style import COLOURS, GREY, MARKERS, save_figure, style
from retain.results.store.loss_table import Row
from retain.results.store.runs import Store
from retain.results.store.study_files import study_folder
from retain.sweeps.schema.linear_theory import (
    Descent,
    Numbers,
    Task,
    flow,
    flow_through,
    initial_strengths,
    mixture,
    squared_loss,
    threshold,
)
from retain.sweeps.tree.linear_stage import task_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("pretrain", "posttrain", "finetune")
KINDS = ("invariant", "inconsistent", "specialised")
LOOKS: dict[str, dict[str, Any]] = {
    kind: {"color": COLOURS[index], "marker": MARKERS[index]} for index, kind in enumerate(KINDS)
}
CLOSED: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0}
CURVE_POINTS = 400


@dataclass(frozen=True)
class Theory:
    """The three stages as the closed forms need them; pretraining without its mixture."""

    start: float
    """T."""
    pretrain: Descent
    posttrain: Descent
    finetune: Descent

    @property
    def kinds(self) -> list[str]:
        pre, post = self.pretrain.task, self.posttrain.task
        same = zip(pre.variances, pre.targets, post.targets, strict=True)
        return [KINDS[2] if not seen else KINDS[0] if a == b else KINDS[1] for seen, a, b in same]

    @property
    def thresholds(self) -> list[float]:
        """α* of the inconsistent features that have one."""
        pre, post = self.pretrain.task.targets, self.posttrain.task.targets
        betas = [post[index] for index, kind in enumerate(self.kinds) if kind == KINDS[2]]
        pairs = [(pre[index], post[index]) for index, kind in enumerate(self.kinds) if kind == KINDS[1]]
        found = [threshold(*pair, min(betas)) for pair in pairs] if betas else []
        return [alpha for alpha in found if alpha is not None]

    def mixed(self, alpha: float) -> Descent:
        """Pretraining at an exposure."""
        return Descent(mixture(self.pretrain.task, self.posttrain.task, alpha), self.pretrain.time)

    def ends(self, alpha: float) -> list[Numbers]:
        """The strengths of the features after each of the three stages."""
        start = initial_strengths(len(self.kinds), self.start)
        return flow_through([self.mixed(alpha), self.posttrain, self.finetune], start)

    def forgotten(self, alpha: float) -> float:
        """Δ = L(θ_ft; D_post) − L(θ_post; D_post)."""
        _, post, end = self.ends(alpha)
        return squared_loss(self.posttrain.task, end) - squared_loss(self.posttrain.task, post)

    def finetuning_loss(self, alpha: float) -> float:
        return squared_loss(self.finetune.task, self.ends(alpha)[2])


@dataclass(frozen=True)
class Simulated:
    """One trial, all three stages done: by stage, what the closed form needs, the times and the strengths [time][feature]."""

    alpha: float
    stages: Mapping[str, tuple[Descent, list[float], list[list[float]]]]
    forgotten: float
    finetuning_loss: float

    def strengths(self, stage: str) -> list[float]:
        """At its end."""
        return self.stages[stage][2][-1]

    def deviation(self) -> float:
        """The largest distance of a feature's strength, at any time of any stage, from the flow that begins where the
        stage began."""
        return max(
            abs(simulated - exact)
            for descent, times, strengths in self.stages.values()
            for time, row in zip(times, strengths, strict=True)
            for simulated, exact in zip(row, flow(descent, strengths[0], time), strict=True)
        )


def draw_theory(store: Path, study: str, rows: Sequence[Row]) -> list[Path]:
    """Write theory.png and theory.svg of the trials that are done; returns their paths, none where none is done.

    Of a study with further axes the trials are drawn that share the first one's values on them.
    """
    mine, others = _alike(rows)
    trials = [trial for row in mine if (trial := read_trial(Store(store), row)) is not None]
    if not trials:
        return []
    from matplotlib.figure import Figure

    theory = read_theory(Store(store), next(row for row in mine if row["retained_posttraining_loss"] is not None))
    trials.sort(key=lambda trial: trial.alpha)
    with style():
        figure = Figure(figsize=(12.6, 7.6), layout="constrained")
        grid = figure.add_gridspec(2, 6)
        low, high = (figure.add_subplot(grid[0, 3 * index : 3 * index + 3]) for index in range(2))
        bottom = [figure.add_subplot(grid[1, 2 * index : 2 * index + 2]) for index in range(3)]
        _over_time(low, theory, trials[0])
        _over_time(high, theory, trials[-1])
        _learned(bottom[0], theory, trials)
        _moved(bottom[1], theory, trials)
        _lost(bottom[2], theory, trials)
        deviation = max(trial.deviation() for trial in trials)
        missing = f"; {len(mine) - len(trials)} of {len(mine)} trials are missing" if len(trials) < len(mine) else ""
        at = f" ({others})" if others else ""
        figure.suptitle(
            f"{study}{at}: gradient descent (colours) and the closed forms (black, dashed), at most {deviation:.2g} "
            f"apart{missing}",
            fontsize=11,
        )
        return list(save_figure(figure, study_folder(store, study) / "theory"))


def read_theory(store: Store, row: Row) -> Theory:
    """The stages of a trial that is done."""
    recipes = {stage: store.run(row["keys"][stage]).spec()["recipe"] for stage in STAGES}
    own = {stage: _descent(recipe, task_of(recipe["corpus"])) for stage, recipe in recipes.items()}
    return Theory(recipes["pretrain"]["model"]["linear"]["start"], **own)


def read_trial(store: Store, row: Row) -> Simulated | None:
    """A trial of the loss table with its features' strengths; None while it is not done."""
    if row["retained_posttraining_loss"] is None:
        return None
    theory = read_theory(store, row)
    runs = {stage: store.run(row["keys"][stage]) for stage in STAGES}
    exposure = runs["pretrain"].spec()["recipe"]["exposure"]
    alpha = exposure["weight"] if exposure else 0.0
    descents = {"pretrain": theory.mixed(alpha), "posttrain": theory.posttrain, "finetune": theory.finetune}
    features = {stage: run.losses()["features"] for stage, run in runs.items()}
    return Simulated(
        alpha,
        {stage: (descents[stage], kept["times"], kept["strengths"]) for stage, kept in features.items()},
        row["retained_posttraining_loss"] - row["immediate_posttraining_loss"],
        row["finetuning_loss"],
    )


def _descent(recipe: Mapping[str, Any], task: Task) -> Descent:
    return Descent(task, recipe["steps"] * recipe["lr"], recipe.get("regularisation", 0.0))


def _alike(rows: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows that share all axes but exposure and seed with the first one that is done, and those axes as a text."""

    def other(row: Row) -> Mapping[str, Any]:
        return {name: value for name, value in row["axes"].items() if name not in ("pretrain.exposure", "seed")}

    first = next((row for row in rows if row["retained_posttraining_loss"] is not None), None)
    if first is None:
        return [], ""
    text = ", ".join(f"{name.rpartition('.')[2]} = {value}" for name, value in other(first).items())
    return [row for row in rows if other(row) == other(first)], text


def _over_time(axes: "Axes", theory: Theory, trial: Simulated) -> None:
    descent, times, strengths = trial.stages["pretrain"]
    fine = [descent.time * index / CURVE_POINTS for index in range(CURVE_POINTS + 1)]
    exact = [flow(descent, strengths[0], time) for time in fine]
    for index, kind in enumerate(theory.kinds):
        colour = LOOKS[kind]["color"]
        axes.plot(times, [row[index] for row in strengths], color=colour, linewidth=4, alpha=0.55, label=kind)
        axes.plot(fine, [row[index] for row in exact], **CLOSED)
    where = "no threshold"
    if theory.thresholds:
        where = "above α*" if trial.alpha > max(theory.thresholds) else "below α*"
    axes.set_title(f"Pretraining at α = {trial.alpha:g} ({where}): {_learned_kinds(theory, trial)}")
    axes.set_xlabel(f"time of the flow; the right end is the stopping time {descent.time:.4g}")
    axes.set_ylabel("strength of a feature, uᵀW₁W₂v")
    _legend(axes, loc="center right", bbox_to_anchor=(1.0, 0.33))


def _learned_kinds(theory: Theory, trial: Simulated) -> str:
    """The kinds of features of which, at the stopping time, all have more than half of their target."""
    targets = trial.stages["pretrain"][0].task.targets
    ends = list(zip(theory.kinds, trial.strengths("pretrain"), targets, strict=True))
    learned = [kind for kind in KINDS if all(end > target / 2 > 0 for name, end, target in ends if name == kind)]
    return f"learns {' and '.join(learned) or 'nothing'}"


def _learned(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    _over_alpha(axes, theory, trials, lambda trial: trial.strengths("pretrain"), lambda alpha: theory.ends(alpha)[0])
    axes.set_title("What pretraining has learned when it stops")
    axes.set_ylabel("strength at the stopping time")
    _legend(axes, loc="lower left", bbox_to_anchor=(0.0, 0.07))


def _moved(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    def simulated(trial: Simulated) -> list[float]:
        pairs = zip(trial.strengths("pretrain"), trial.strengths("posttrain"), strict=True)
        return [after - before for before, after in pairs]

    def exact(alpha: float) -> list[float]:
        before, after, _ = theory.ends(alpha)
        return [b - a for a, b in zip(before, after, strict=True)]

    _over_alpha(axes, theory, trials, simulated, exact)
    axes.set_title("What post-training moves")
    axes.set_ylabel("change of strength in post-training")
    _legend(axes, loc="lower right")


def _lost(axes: "Axes", theory: Theory, trials: Sequence[Simulated]) -> None:
    fine = _exposures(theory, trials)
    alphas = [trial.alpha for trial in trials]
    lines = (
        ("Δ = L(θ_ft; D_post) − L(θ_post; D_post)", COLOURS[5], "o", theory.forgotten, [t.forgotten for t in trials]),
        ("L(θ_ft; D_ft): the price", COLOURS[3], "X", theory.finetuning_loss, [t.finetuning_loss for t in trials]),
    )
    for label, colour, marker, exact, values in lines:
        axes.plot(fine, [exact(alpha) for alpha in fine], **CLOSED)
        axes.plot(alphas, values, linestyle="none", color=colour, marker=marker, markersize=6, label=label)
    axes.set_title("What fine-tuning makes forget")
    axes.set_ylabel("squared loss")
    _mark_thresholds(axes, theory)
    _legend(axes, loc="lower left", bbox_to_anchor=(0.0, 0.08))


def _over_alpha(
    axes: "Axes",
    theory: Theory,
    trials: Sequence[Simulated],
    simulated: Callable[[Simulated], Sequence[float]],
    exact: Callable[[float], Sequence[float]],
) -> None:
    """A number of every feature against α: the trials as points, the closed form as lines."""
    fine = _exposures(theory, trials)
    curves = [exact(alpha) for alpha in fine]
    points = [simulated(trial) for trial in trials]
    alphas = [trial.alpha for trial in trials]
    for index, kind in enumerate(theory.kinds):
        axes.plot(fine, [curve[index] for curve in curves], **CLOSED)
        axes.plot(
            alphas,
            [point[index] for point in points],
            linestyle="none",
            markersize=6,
            alpha=0.8,
            label=kind,
            **LOOKS[kind],
        )
    _mark_thresholds(axes, theory)


def _exposures(theory: Theory, trials: Sequence[Simulated]) -> list[float]:
    low, high = trials[0].alpha, trials[-1].alpha
    return [low + (high - low) * index / CURVE_POINTS for index in range(CURVE_POINTS + 1)] if high > low else [low]


def _mark_thresholds(axes: "Axes", theory: Theory) -> None:
    """A line at α* of the whole model, that of its last inconsistent feature, and a band from that of its first."""
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
    """Each name once."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", **place)
