"""The fields of a linear study: the two-layer linear model of the paper's theory, and the assumptions of its theorems.

Features have the same order everywhere: first the n − 2k invariant ones, then the k inconsistent ones, then the k specialised
ones.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from retain.sweeps.schema.corpora import Corpus, Tokenizer
from retain.sweeps.schema.execution import Execution, check_stage_names
from retain.sweeps.schema.linear.closed_forms import Task, threshold
from retain.sweeps.schema.section import (
    STAGE_KINDS,
    Fraction,
    Grid,
    Name,
    NotNegative,
    Number,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    read_list,
)

SingularValues = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


class Linear(Section):
    """The singular values of the features in the three tasks."""

    features: Positive
    """n, the number of features: the width of both layers."""
    inconsistent: Positive
    """k, the number of inconsistent features. The number of specialised features is also k."""
    start: Annotated[Number, Field(gt=0, le=300)]
    """T: W1 and W2 start as exp(−T) times the identity, in the coordinates of the features. The largest value is 300, because
    float64 represents exp(−2T) only up to about T = 350."""
    invariant: SingularValues
    """The singular values of the n − 2k invariant features, which all three tasks share. One number stands for all."""
    pre: SingularValues
    """The singular values of the k inconsistent features in D_pre. One number stands for all."""
    post: SingularValues
    """The singular values of the k inconsistent features in D_post. One number stands for all."""
    ft: SingularValues
    """The singular values of the k inconsistent features in D_ft. One number stands for all."""
    beta: PositiveFloat
    """β, the singular value of every specialised feature in D_post. Inputs of D_pre and D_ft have no specialised features."""
    c: PositiveFloat
    """The distance that must separate the singular value of an inconsistent feature in D_post from those in D_pre and D_ft."""
    assumptions: Literal["required", "consistent", "explored"] = "required"
    """Whether every assumption of the theorems must hold (`required`, the default), every one but β < c/2, which only the last
    bound of Theorem C.17 uses (`consistent`), or none (`explored`)."""

    @field_validator("invariant", "pre", "post", "ft", mode="before")
    @classmethod
    def accept_one_number(cls, value: Any) -> Any:
        return read_list(value)

    @model_validator(mode="after")
    def check_counts(self) -> Self:
        shared = self.features - 2 * self.inconsistent
        if shared < 1:
            raise ValueError(
                f"inconsistent: {self.inconsistent} inconsistent and {self.inconsistent} specialised features leave no "
                f"invariant feature among {self.features}; lower inconsistent, or raise features"
            )
        counts = {"invariant": shared} | dict.fromkeys(("pre", "post", "ft"), self.inconsistent)
        for name, wanted in counts.items():
            if (given := len(getattr(self, name))) not in (1, wanted):
                raise ValueError(f"{name}: {given} values for {wanted} features; give {wanted} values, or one for all")
        return self

    def spectrum(self, name: str, count: int) -> tuple[float, ...]:
        """The values of a field, one for each of its `count` features."""
        values: tuple[float, ...] = getattr(self, name)
        return values if len(values) == count else values * count

    def task(self, name: Literal["pre", "post", "ft"]) -> Task:
        """D_pre, D_post or D_ft."""
        k = self.inconsistent
        shared = self.spectrum("invariant", self.features - 2 * k)
        specialised = 1.0 if name == "post" else 0.0
        targets = (*shared, *self.spectrum(name, k), *(self.beta * specialised,) * k)
        return Task(targets, (1.0,) * (self.features - k) + (specialised,) * k)

    def thresholds(self) -> list[float | None]:
        """The threshold α* of each inconsistent feature; None if mixing is never sufficient."""
        k = self.inconsistent
        pairs = zip(self.spectrum("pre", k), self.spectrum("post", k), strict=True)
        return [threshold(pre, post, self.beta) for pre, post in pairs]

    def broken_assumptions(self) -> list[str]:
        """One sentence, with the cure, for each assumption of the theorems that does not hold.

        The numbers are those of the paper's Appendix C. The distance of Definition C.3 is read as absolute, and β < c/2 of
        Definition C.4 is dropped if `assumptions` is `consistent`.
        """
        k, broken = self.inconsistent, []
        pre, post, ft = (self.spectrum(name, k) for name in ("pre", "post", "ft"))
        others = max(*pre, *post, *ft, self.beta)
        if min(self.invariant) <= others:
            broken.append(
                f"model.linear.invariant: invariant features must have the largest singular values (C.5), but "
                f"{min(self.invariant):g} is not above {others:g}; raise model.linear.invariant"
            )
        for name, other in (("pre", pre), ("ft", ft)):
            if (least := min(abs(a - b) for a, b in zip(post, other, strict=True))) <= self.c:
                broken.append(
                    f"model.linear.{name}: inconsistent features must differ between post and {name} by more than c (C.3), but "
                    f"one differs by {least:g} and c is {self.c:g}; move the values apart, or lower c"
                )
        if self.beta >= self.c / 2 and self.assumptions != "consistent":
            broken.append(
                f"model.linear.beta: β must be below c/2 (C.4), but β is {self.beta:g} and c/2 is {self.c / 2:g}; "
                "lower β, raise c and the distances, set model.linear.assumptions: consistent"
            )
        if None in self.thresholds():
            broken.append(
                "model.linear.post: sufficient mixing (C.6: αβ > (1 − α)·pre + α·post) holds for no α in [0, 1]; "
                "choose post below beta, and pre above post"
            )
        return broken


class LinearModel(Section):
    """The model of a linear study."""

    linear: Linear
    """The features and their singular values. This section makes the study a linear one."""


class LinearStage(Section):
    """The fields that all stages of a linear study share."""

    batch: ClassVar[int] = 1
    """A step takes one exact gradient."""

    lr: PositiveFloat = 0.01
    """The learning rate of gradient descent, which is also the time of the gradient flow that one step covers. A smaller rate
    makes the discretisation error smaller."""


class LinearPretrain(LinearStage):
    """Stage 1 of a linear study: gradient descent on D_pre, mixed with D_post."""

    exposure: Fraction = 0.0
    """α: pretraining is on (1 − α)·D_pre + α·D_post. The default is no mixing."""
    time: PositiveFloat | None = None
    """The stopping time, in time of the gradient flow. The default is T / (α*β): a run that stops then has learned the
    inconsistent feature if α is below the threshold α*, and the specialised feature if α is above it."""


class LinearLaterStage(LinearStage):
    """Stage 2 (D_post) or Stage 3 (D_ft) of a linear study."""

    time: PositiveFloat
    """The stopping time, in time of the gradient flow. It must be short against T / σ: only then do features that start at
    exp(−2T) stay near 0."""
    regularisation: NotNegative = 0.0
    """λ_reg in the penalty λ_reg‖θ − θ_0‖², where θ_0 is the model that the stage starts from. The default is no penalty."""


class LinearStudy(Section):
    """A study of the paper's theory (Section 5, Appendix C): a two-layer linear model through the same three stages."""

    study: Name
    """The name of the study. The default is the file's name without its suffix."""
    model: LinearModel
    """The linear model and its tasks."""
    pretrain: LinearPretrain
    """Stage 1."""
    posttrain: LinearLaterStage
    """Stage 2."""
    finetune: LinearLaterStage
    """Stage 3."""
    seed: Seed = 0
    """The seed of the singular vectors U and V, which the three tasks share."""
    cases: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Axes of named cases, each of which sets several fields. A list in a case is a grid within that case."""
    grid: Grid = Field(default_factory=dict)
    """The axes of the grid: the dotted path of a field, and the list of its values."""
    search: dict[str, Any] = Field(default_factory=dict)
    """The space that `retain search` searches. Its fields are under Searches in docs/reference/fields.md."""
    execution: Execution = Execution()
    """How and where the stages run. None of it enters a stage key."""

    # Fields that every study has; a linear study reads no text.
    stages: ClassVar[tuple[str, ...]] = STAGE_KINDS
    corpora: ClassVar[Mapping[str, Corpus]] = {}
    tokenizer: ClassVar[Tokenizer | None] = None
    sequence_length: ClassVar[int] = 1
    loss_unit: ClassVar[str] = "squared losses E‖y − θx‖², exact"

    @model_validator(mode="after")
    def check_execution(self) -> Self:
        check_stage_names(self.execution, self.stages)
        return self

    @model_validator(mode="after")
    def check_one_process(self) -> Self:
        if any(self.execution.of_stage(kind).devices > 1 for kind in STAGE_KINDS):
            raise ValueError("execution.devices: a linear stage trains in one process; remove devices")
        return self


def is_linear(raw: Mapping[str, Any]) -> bool:
    """Whether the plain mapping of a study file or of a recipe has a linear model."""
    return isinstance(raw.get("model"), Mapping) and "linear" in raw["model"]
