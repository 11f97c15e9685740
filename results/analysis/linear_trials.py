"""The trials of a linear study beside the closed forms of the paper's theory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retain.results.analysis.loss_planes import L_FT, L_IM, L_RET
from retain.results.store.loss_table import Row
from retain.results.store.runs import Store
from retain.sweeps.schema.linear.closed_forms import (
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
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.linear_stage import stage_task, task_of

KINDS = INVARIANT, INCONSISTENT, SPECIALISED = "invariant", "inconsistent", "specialised"


@dataclass(frozen=True)
class Theory:
    """The three stages as the closed forms need them; pretraining is given without its mixture."""

    start: float
    """T."""
    pretrain: Descent
    posttrain: Descent
    finetune: Descent

    @property
    def kinds(self) -> list[str]:
        """The kind of each feature."""
        pre, post = self.pretrain.task, self.posttrain.task
        features = zip(pre.variances, pre.targets, post.targets, strict=True)
        return [SPECIALISED if not seen else INVARIANT if a == b else INCONSISTENT for seen, a, b in features]

    @property
    def thresholds(self) -> list[float]:
        """α* of each inconsistent feature that has one."""
        features = list(zip(self.kinds, self.pretrain.task.targets, self.posttrain.task.targets, strict=True))
        betas = [post for kind, _, post in features if kind == SPECIALISED]
        pairs = [(pre, post) for kind, pre, post in features if kind == INCONSISTENT]
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
        """L(θ_ft; D_ft)."""
        return squared_loss(self.finetune.task, self.ends(alpha)[2])


@dataclass(frozen=True)
class Simulated:
    """One finished trial. `stages` holds each stage's closed form, its times, and its strengths [time][feature]."""

    alpha: float
    stages: Mapping[str, tuple[Descent, list[float], list[list[float]]]]
    forgotten: float
    finetuning_loss: float

    def strengths(self, stage: str) -> list[float]:
        """The strengths of the features at the end of a stage."""
        return self.stages[stage][2][-1]

    def deviation(self) -> float:
        """The largest distance between a feature's strength, at any time of any stage, and the flow from the stage's start."""
        return max(
            abs(simulated - exact)
            for descent, times, strengths in self.stages.values()
            for time, row in zip(times, strengths, strict=True)
            for simulated, exact in zip(row, flow(descent, strengths[0], time), strict=True)
        )


def read_theory(store: Store, row: Row) -> Theory:
    """The closed forms for the stages of a finished trial."""
    recipes = {stage: store.run(row["keys"][stage]).spec()["recipe"] for stage in STAGE_KINDS}
    descents = (_descent(recipe, task_of(recipe["corpus"])) for recipe in recipes.values())
    return Theory(recipes["pretrain"]["model"]["linear"]["start"], *descents)


def read_trial(store: Store, row: Row) -> Simulated:
    """A finished trial of the loss table with the strengths of its features."""
    stages, alpha = {}, 0.0
    for stage in STAGE_KINDS:
        run = store.run(row["keys"][stage])
        recipe, features = run.spec()["recipe"], run.losses()["features"]
        stages[stage] = _descent(recipe, stage_task(recipe)), features["times"], features["strengths"]
        if recipe.get("exposure"):
            alpha = recipe["exposure"]["weight"]
    return Simulated(alpha, stages, row[L_RET] - row[L_IM], row[L_FT])


def _descent(recipe: Mapping[str, Any], task: Task) -> Descent:
    return Descent(task, recipe["steps"] * recipe["lr"], recipe.get("regularisation", 0.0))
