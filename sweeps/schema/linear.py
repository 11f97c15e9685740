"""The two-layer linear model of the paper's theory as a study: its fields, its assumptions, its recipes.

Features stand in one order everywhere: n − 2k invariant ones, k inconsistent ones, k specialised ones. A stage's `corpus` is
the task itself, its `sequences` are steps of gradient descent, and a step counts as one token.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.linear_theory import Task, order_time, threshold
from retain.sweeps.schema.section import Fraction, Positive, Section, Seed
from retain.sweeps.schema.study import Corpus, Tokenizer
from retain.sweeps.tree.data_facts import Facts

METHOD = "gradient descent on the population loss"
"""What the recipe of every stage of a linear study names as its method, and of no other."""

Values = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
Above0 = Annotated[float, Field(gt=0)]


class Linear(Section):
    """The tasks' shared features and their singular values."""

    features: Positive
    """n: the width of both layers."""
    inconsistent: Positive
    """k: so many features are inconsistent, and as many specialised."""
    start: Annotated[float, Field(gt=0, le=300)]
    """T: W1 and W2 start as exp(−T) times the identity, in the coordinates of the features. Doubles hold exp(−2T) to 350."""
    invariant: Values
    """The n − 2k singular values that all tasks share."""
    pre: Values
    """The singular values of the inconsistent features in D_pre."""
    post: Values
    """In D_post."""
    ft: Values
    """In D_ft."""
    beta: Above0
    """The singular value of every specialised feature in D_post; D_pre and D_ft never show one."""
    c: Above0
    """How far D_post is from the others on inconsistent features, at least."""
    assumptions: Literal["required", "explored"] = "required"
    """required: a study outside of the theorems' assumptions is refused; explored: it is run all the same."""

    @field_validator("invariant", "pre", "post", "ft", mode="before")
    @classmethod
    def one_for_all(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def counted(self) -> Self:
        shared = self.features - 2 * self.inconsistent
        if shared < 1:
            raise ValueError(
                f"inconsistent: {self.inconsistent} inconsistent and as many specialised features leave none of "
                f"{self.features} invariant; lower it, or raise features"
            )
        counts = {"invariant": shared} | dict.fromkeys(("pre", "post", "ft"), self.inconsistent)
        for name, wanted in counts.items():
            if (given := len(getattr(self, name))) not in (1, wanted):
                raise ValueError(f"{name}: {given} values for {wanted} features; give {wanted}, or one for all")
        return self

    def spectrum(self, name: str, count: int) -> tuple[float, ...]:
        """The values of a field, one for each feature."""
        values: tuple[float, ...] = getattr(self, name)
        return values if len(values) == count else values * count

    def task(self, name: Literal["pre", "post", "ft"]) -> Task:
        """D_pre, D_post or D_ft."""
        k = self.inconsistent
        shared = self.spectrum("invariant", self.features - 2 * k)
        shows = 1.0 if name == "post" else 0.0
        targets = (*shared, *self.spectrum(name, k), *(self.beta * shows,) * k)
        return Task(targets, (1.0,) * (self.features - k) + (shows,) * k)

    def thresholds(self) -> list[float | None]:
        """α* of each inconsistent feature; None where mixing is never sufficient."""
        k = self.inconsistent
        pairs = zip(self.spectrum("pre", k), self.spectrum("post", k), strict=True)
        return [threshold(pre, post, self.beta) for pre, post in pairs]

    def broken_assumptions(self) -> list[str]:
        """Each assumption of the theorems that does not hold, with the cure."""
        k, broken = self.inconsistent, []
        pre, post, ft = (self.spectrum(name, k) for name in ("pre", "post", "ft"))
        others = max(*pre, *post, *ft, self.beta)
        if min(self.invariant) <= others:
            broken.append(
                f"model.linear.invariant: invariant features have the largest singular values, but {min(self.invariant):g} "
                f"is not above {others:g}; raise it"
            )
        for name, other in (("pre", pre), ("ft", ft)):
            if (least := min(abs(a - b) for a, b in zip(post, other, strict=True))) <= self.c:
                broken.append(
                    f"model.linear.{name}: inconsistent features differ between post and {name} by more than c, but one "
                    f"differs by {least:g} and c is {self.c:g}; move them apart, or lower c"
                )
        if self.beta >= self.c / 2:
            broken.append(
                f"model.linear.beta: specialised features have β < c/2, but β is {self.beta:g} and c/2 {self.c / 2:g}; "
                "lower β, or raise c and the distances"
            )
        if None in self.thresholds():
            broken.append(
                "model.linear.post: sufficient mixing (C.6: αβ > (1 − α)·pre + α·post) holds for no α in [0, 1]; "
                "choose post below beta, and pre above post"
            )
        return broken


class LinearModel(Section):
    linear: Linear


class Descending(Section):
    """What all stages share."""

    batch: ClassVar[int] = 1
    """A step is one exact gradient."""

    lr: Above0 = 0.01
    """The step of gradient descent, which is the flow's time between two steps: the error of the discretisation."""


class LinearPretrain(Descending):
    exposure: Fraction = 0.0
    """α: pretraining is on (1 − α)·D_pre + α·D_post."""
    time: Above0 | None = None
    """The stopping time; without it T / (α*β), at which what is learned changes just at the threshold α*."""


class LinearLater(Descending):
    time: Above0
    """The stopping time. What a stage finds at exp(−2T) stays near 0 only if this is short against T / σ."""
    regularisation: Annotated[float, Field(ge=0)] = 0.0
    """λ_reg of λ_reg‖θ − θ_0‖², with θ_0 what the stage starts from."""


class LinearStudy(Section):
    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: LinearModel
    pretrain: LinearPretrain
    posttrain: LinearLater
    finetune: LinearLater
    seed: Seed = 0
    """Of the shared singular vectors U and V."""
    cases: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    search: dict[str, Any] = Field(default_factory=dict)
    execution: Execution = Execution()

    # What the verbs ask of any study: this one reads no text.
    corpora: ClassVar[Mapping[str, Corpus]] = {}
    tokenizer: ClassVar[Tokenizer | None] = None
    sequence_length: ClassVar[int] = 1
    loss_unit: ClassVar[str] = "squared losses E‖y − θx‖², exact"

    @model_validator(mode="after")
    def one_process(self) -> Self:
        if any(self.execution.of_stage(kind).devices > 1 for kind in ("pretrain", "posttrain", "finetune")):
            raise ValueError("execution.devices: one process trains a linear stage; take devices out")
        return self


def is_linear(raw: Mapping[str, Any]) -> bool:
    """Whether a study file's plain mapping is that of a linear study."""
    return isinstance(raw.get("model"), Mapping) and "linear" in raw["model"]


def linear_pretrain_recipe(study: LinearStudy, facts: Facts) -> dict[str, Any]:
    """Stage 1: D_pre, and with α > 0 the mixture with D_post. Raises StudyError where an assumption does not hold."""
    linear, stage = study.model.linear, study.pretrain
    if linear.assumptions == "required" and (broken := linear.broken_assumptions()):
        raise StudyError(f"{broken[0]}, or set model.linear.assumptions: explored")
    exposed = {"corpus": _as_corpus(linear.task("post")), "weight": stage.exposure} if stage.exposure else None
    return {
        "model": {"linear": {"features": linear.features, "start": linear.start}},
        "seed": study.seed,
        "corpus": _as_corpus(linear.task("pre")),
        "exposure": exposed,
        **_descent(stage.lr, stopping_time(study)),
    }


def linear_posttrain_recipe(study: LinearStudy, facts: Facts) -> dict[str, Any]:
    """Stage 2: D_post."""
    return _later_recipe(study.posttrain, study.model.linear.task("post"))


def linear_finetune_recipe(study: LinearStudy, facts: Facts) -> dict[str, Any]:
    """Stage 3: D_ft."""
    return _later_recipe(study.finetune, study.model.linear.task("ft"))


def stopping_time(study: LinearStudy) -> float:
    """Of pretraining, in the flow's time. Raises StudyError where there is no threshold to tell one."""
    if study.pretrain.time is not None:
        return study.pretrain.time
    linear = study.model.linear
    found = [alpha for alpha in linear.thresholds() if alpha]
    if len(found) < linear.inconsistent:
        raise StudyError("pretrain.time: there is no threshold of α that would tell a stopping time; give one")
    return order_time(linear.start, max(found), linear.beta)


def task_of(corpus: Mapping[str, Any]) -> Task:
    """The task that a recipe writes as a corpus."""
    return Task(tuple(corpus["targets"]), tuple(corpus["variances"]))


def linear_cost(recipe: Mapping[str, Any]) -> tuple[int, int]:
    """FLOPs of a step, four products of n × n matrices, and parameters."""
    n = recipe["model"]["linear"]["features"]
    return 8 * n**3, 2 * n**2


def _later_recipe(stage: LinearLater, task: Task) -> dict[str, Any]:
    return {
        "corpus": _as_corpus(task),
        "regularisation": stage.regularisation,
        **_descent(stage.lr, stage.time),
    }


def _descent(lr: float, time: float) -> dict[str, Any]:
    steps = max(1, round(time / lr))
    return {"method": METHOD, "lr": lr, "steps": steps, "sequences": steps, "sequence_length": 1, "batch": 1}


def _as_corpus(task: Task) -> dict[str, Any]:
    return {name: list(values) for name, values in asdict(task).items()}
