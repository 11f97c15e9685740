"""The `search:` block of a study: which fields are searched, what is wanted of a point, and on how many seeds.

A point of the space is a value for each axis. Continuous values are rounded to `digits` significant digits, so that points
that are as good as equal are equal, and share their stages.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import grid_values
from retain.sweeps.schema.section import Positive, Section, Seed
from retain.sweeps.schema.validation_messages import first_sentence

Loss = Literal[
    "immediate_posttraining_loss", "retained_posttraining_loss", "finetuning_loss", "retained_pretraining_loss"
]
"""The four losses of a trial (paper, Section 3), in nats per token; lower is better."""
Values = dict[str, Any]
"""A point: a value for each axis, by its dotted path."""
BEFORE_FINETUNING: Loss = "immediate_posttraining_loss"
"""The one loss that is known before fine-tuning begins."""
STAGE_ORDER = ("pretrain", "posttrain", "finetune")
MOST_CORNERS = 64


class Range(Section):
    """A continuous or whole-numbered axis: exactly one of these, each [lowest, highest]."""

    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def two_ends(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError(f"write [lowest, highest], or a list of values without {info.field_name}")
        return value

    @model_validator(mode="after")
    def one_kind(self) -> "Range":
        given = [name for name in Range.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of uniform, loguniform or integers, each as [lowest, highest]")
        low, high = getattr(self, given[0])
        if not low < high:
            raise ValueError(f"{given[0]}: [{low:g}, {high:g}] is empty; write the lower end first")
        if given == ["loguniform"] and low <= 0:
            raise ValueError(f"loguniform: {low:g} has no logarithm; begin above 0, or use uniform")
        return self


class Objective(Section):
    """What is minimised: one loss, a weighted sum of losses, or the frontier of two."""

    loss: Loss | None = None
    weighted: Annotated[dict[Loss, float], Field(min_length=1)] | None = None
    hypervolume: tuple[Loss, Loss] | None = None
    """The plane (x, y) whose frontier is pushed: what is sought is the set of points that no other point dominates."""

    @model_validator(mode="before")
    @classmethod
    def from_name(cls, value: Any) -> Any:
        if isinstance(value, list):
            plane = ", ".join(map(str, value)) if len(value) == 2 else "LOSS, LOSS"
            raise ValueError(f"name one loss; for a frontier write {{hypervolume: [{plane}]}}")
        return {"loss": value} if isinstance(value, str) else value

    @field_validator("hypervolume", mode="before")
    @classmethod
    def a_plane(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError("a plane has two losses; write [LOSS, LOSS]")
        return value

    @model_validator(mode="after")
    def one_kind(self) -> "Objective":
        if sum(getattr(self, name) is not None for name in Objective.model_fields) != 1:
            raise ValueError("give a loss, `weighted: {loss: weight}` or `hypervolume: [loss, loss]`")
        if self.hypervolume and self.hypervolume[0] == self.hypervolume[1]:
            raise ValueError("hypervolume: a plane has two losses; name two different ones")
        if self.weighted and not any(self.weighted.values()):
            raise ValueError("weighted: all weights are 0; give one that counts")
        return self

    def scores(self, losses: Mapping[str, float]) -> tuple[float, ...]:
        """What is minimised, of a point's losses: one number, or two for the frontier."""
        if self.hypervolume:
            return tuple(losses[name] for name in self.hypervolume)
        if self.loss:
            return (losses[self.loss],)
        return (sum(weight * losses[name] for name, weight in (self.weighted or {}).items()),)

    def directions(self) -> set[tuple[Loss, int]]:
        """The losses that it is made of; 1: lower is better, -1: higher is, where its weight is negative."""
        if self.weighted:
            return {(name, 1 if weight > 0 else -1) for name, weight in self.weighted.items() if weight}
        return {(name, 1) for name in (self.hypervolume or (self.loss,)) if name}

    def __str__(self) -> str:
        if self.hypervolume:
            return f"the frontier of {self.hypervolume[0]} and {self.hypervolume[1]}"
        return self.loss or " + ".join(f"{weight:g}·{name}" for name, weight in (self.weighted or {}).items())


class Constraint(Section):
    """A bound on a loss: relative to the best point so far, or absolute."""

    within: Annotated[float, Field(ge=0)] | None = None
    """0.01: at most 1% above the lowest of all points."""
    at_most: Annotated[float, Field(gt=0)] | None = None
    """Nats per token."""

    @model_validator(mode="before")
    @classmethod
    def says_which(cls, value: Any) -> Any:
        if not isinstance(value, dict | Constraint):
            share = value if isinstance(value, int | float) and not isinstance(value, bool) else "SHARE"
            raise ValueError(f"write {{within: {share}}} (of the best point's) or {{at_most: NATS}}")
        return value

    @model_validator(mode="after")
    def one_kind(self) -> "Constraint":
        if (self.within is None) == (self.at_most is None):
            raise ValueError("give within: SHARE (of the best point's) or at_most: NATS")
        return self

    def __str__(self) -> str:
        return f"at most {self.at_most:g} nats" if self.within is None else f"within {self.within * 100:g}% of the best"


class Rungs(Section):
    """Early ends of post-training: at each rung the worse of its siblings, those with the same parent, are given up."""

    first: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """The first rung, as a share of the stage's tokens; the next ones are each `factor` times as far."""
    factor: Annotated[int, Field(ge=2)] = 2
    """Of those that have reached a rung, the best 1/factor go on."""


class Probe(Section):
    """Early ends of fine-tuning: at one point of its way it is given up where enough others dominate it."""

    at: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Where it is looked at, as a share of its tokens."""
    factor: Annotated[int, Field(ge=2)] = 2
    """Given up where 1/factor of the comparable ones that were there dominate it."""


class SearchBlock(Section):
    """The fields of `search:`."""

    axes: Annotated[dict[str, Any], Field(min_length=1)]
    """Field: a list of values to choose from, {uniform: [a, b]}, {loguniform: [a, b]} or {integers: [a, b]}."""
    objective: Objective = Objective(loss="retained_posttraining_loss")
    constraints: dict[Loss, Constraint] = Field(default_factory=dict)
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])
    """Replicates: each point is trained with each, and judged by the mean."""
    searcher: Literal["random", "grid", "tpe", "nsga2"] = "tpe"
    trials: Positive = 50
    """Points to try at most."""
    digits: Annotated[int, Field(ge=1, le=12)] = 3
    """Significant digits of continuous values."""
    grid_values: Annotated[int, Field(ge=2)] = 5
    """Values that the searcher `grid` takes of a continuous axis."""
    per_pretraining: Positive = 4
    """Points to try under one pretraining before another one: those below it are cheap."""
    per_posttraining: Positive = 2
    """Of these, points under one post-training."""
    prune: Rungs | None = None
    probe: Probe | None = None
    seed: Seed = 0
    """Of the searcher."""

    @field_validator("seeds", mode="before")
    @classmethod
    def listed(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"write a list: [{value}]")
        return value

    @model_validator(mode="after")
    def makes_sense(self) -> "SearchBlock":
        if repeated := {seed for seed in self.seeds if self.seeds.count(seed) > 1}:
            raise ValueError(f"seeds: {min(repeated)} is listed twice; each seed is a replicate of its own")
        if self.per_posttraining > self.per_pretraining:
            raise ValueError("per_posttraining: it cannot be more than per_pretraining; lower it")
        if self.probe and {name for name, _ in self.directions()} == {BEFORE_FINETUNING}:
            raise ValueError(
                f"probe: all that is asked for is {BEFORE_FINETUNING}, which no fine-tuning changes; take probe out"
            )
        return self

    def directions(self) -> set[tuple[Loss, int]]:
        """The losses that are minimised or constrained; see `Objective.directions`."""
        return self.objective.directions() | {(name, 1) for name in self.constraints}


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched field: values to choose from, or a range."""

    path: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    digits: int = 3

    @property
    def stage(self) -> str:
        """The earliest kind of stage that it changes, as far as its name tells; fields of the study: pretraining."""
        section = self.path.partition(".")[0]
        exposed = self.path in ("posttrain.corpus", "posttrain.tokens")
        return section if section in STAGE_ORDER and not exposed else "pretrain"

    def at(self, share: float) -> Any:
        """The value at a share of the way, in [0, 1), through the axis; rounded, and never outside of its ends."""
        if self.choices is not None:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.whole:
            return min(int(self.low) + int(share * (int(self.high) - int(self.low) + 1)), int(self.high))
        if self.log:
            return self.rounded(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.rounded(self.low + share * (self.high - self.low))

    def rounded(self, value: float) -> Any:
        """To the axis's significant digits, within its ends."""
        if self.choices is not None:
            return value
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{self.digits}g}"), self.low), self.high)

    def fraction(self) -> float | None:
        """A value of this axis that is no whole number; None where all of them are, by its kind or after rounding."""
        if self.choices is not None or self.whole:
            return None
        # Rounding is the coarser the further out, so what lies next to the lower end tells of all before the upper one.
        for value in (self.low, math.floor(self.low) + 0.5, self.high):
            if self.low <= value <= self.high and self.rounded(value) % 1:
                return float(self.rounded(value))
        return None

    def spread(self, count: int) -> list[Any]:
        """`count` values over the axis, its ends among them; of choices, all."""
        if self.choices is not None:
            return list(self.choices)
        if self.whole:
            numbers = [round(self.low + step * (self.high - self.low) / (count - 1)) for step in range(count)]
            return list(dict.fromkeys(numbers))
        return list(dict.fromkeys([*(self.at(step / (count - 1)) for step in range(count - 1)), self.high]))

    def holds(self, value: Any) -> bool:
        """Whether a value, perhaps of an earlier search, lies on this axis."""
        if self.choices is not None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Search:
    """A checked block, and its axes in the order of the stages: what is changed last varies fastest."""

    block: SearchBlock
    axes: tuple[Axis, ...]

    def ends(self) -> Iterator[Values]:
        """The corners of the space; where those are too many, each axis's ends with the others at their beginning."""
        sides = [axis.spread(2) if axis.choices is None else list(axis.choices) for axis in self.axes]
        names = [axis.path for axis in self.axes]
        if math.prod(map(len, sides)) <= MOST_CORNERS:
            yield from (dict(zip(names, corner, strict=True)) for corner in itertools.product(*sides))
            return
        first = {name: side[0] for name, side in zip(names, sides, strict=True)}
        yield first
        for name, side in zip(names, sides, strict=True):
            yield from (first | {name: value} for value in side[1:])

    def grid(self) -> list[Values]:
        """All points of the searcher `grid`, those that share a pretraining together."""
        names = [axis.path for axis in self.axes]
        values = [axis.spread(self.block.grid_values) for axis in self.axes]
        return [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]

    def names_of(self, stages: Sequence[str]) -> list[str]:
        """The axes of these kinds of stages."""
        return [axis.path for axis in self.axes if axis.stage in stages]


def read_search(raw: dict[str, Any], schema: type[BaseModel], file: str) -> Search:
    """The search block of a study file's plain mapping, each end and choice tried in its place. Raises StudyError."""
    try:
        block = SearchBlock.model_validate({"seeds": [raw.get("seed", 0)]} | raw["search"])
    except ValidationError as error:
        raise StudyError(f"{file}: search.{first_sentence(error, SearchBlock)}") from None
    study = {name: part for name, part in raw.items() if name != "search"}
    axes = [
        _axis(study, path, values, block.digits, schema, f"{file}: search.axes.{path}")
        for path, values in block.axes.items()
    ]
    for axis, other in itertools.permutations(axes, 2):
        if f"{axis.path}.".startswith(f"{other.path}."):
            raise StudyError(f"{file}: search.axes: {axis.path} is a part of {other.path}; leave it to one of them")
    return Search(block, tuple(sorted(axes, key=lambda axis: STAGE_ORDER.index(axis.stage))))


def _axis(raw: dict[str, Any], path: str, values: Any, digits: int, schema: type[BaseModel], where: str) -> Axis:
    if path == "seed" or path.endswith(".seed"):
        raise StudyError(f"{where}: seeds are replicates of a point and no axis; list them under search.seeds")
    if isinstance(values, list):
        checked = grid_values(raw, path, values, schema, where)
        # As the schema reads them: to YAML 5e-5 is a text. A section of the study stays the mapping that was written.
        plain = [
            read if isinstance(read, int | float | str) else value for read, value in zip(checked, values, strict=True)
        ]
        return Axis(path, choices=tuple(plain))
    if not isinstance(values, dict):
        raise StudyError(
            f"{where}: {values!r} is no axis; write a list of values, or {{uniform: [a, b]}}, {{loguniform: [a, b]}} or "
            "{integers: [a, b]}"
        )
    if _is_section(schema, path) and (inner := [name for name in values if name not in Range.model_fields]):
        raise StudyError(f"{where}: an axis is one name; write search: {{axes: {{{path}.{inner[0]}: ...}}}}")
    try:
        found = Range.model_validate(values)
    except ValidationError as error:
        raise StudyError(f"{where}: {first_sentence(error, Range)}") from None
    kind, (low, high) = next((name, ends) for name, ends in found if ends is not None)
    if path == "sequence_length":
        raise StudyError(f"{where}: the data is packed for each length; list the lengths, as in [128, 256]")
    axis = Axis(path, low=low, high=high, log=kind == "loguniform", whole=kind == "integers", digits=digits)
    if (inside := axis.fraction()) is not None and _is_whole(raw, path, inside, schema):
        first, last = math.ceil(low), math.floor(high)
        cure = f"write integers: [{first}, {last}]" if first < last else "write a list of them"
        raise StudyError(f"{where}: whole numbers only; {cure}")
    grid_values(raw, path, [low, high], schema, where)
    return axis


def _is_section(schema: type[BaseModel], name: str) -> bool:
    field = schema.model_fields.get(name)
    return field is not None and hasattr(field.annotation, "model_fields")


def _is_whole(raw: dict[str, Any], path: str, fraction: float, schema: type[BaseModel]) -> bool:
    """Whether a field refuses this fraction and takes the whole number above it."""

    def takes(value: float) -> bool:
        try:
            grid_values(raw, path, [value], schema, "")
        except StudyError:
            return False
        return True

    return not takes(fraction) and takes(math.ceil(fraction))


LOSSES: tuple[str, ...] = get_args(Loss)
