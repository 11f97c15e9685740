"""The `search:` section of a study: the fields that are searched, the objective, and the seeds.

A point of the space has a value for each axis. Continuous values are rounded to `digits` significant digits, so that points
that are nearly equal become equal and share their stages.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import grid_settings, grid_values, is_section, takes_whole_only, values_or_ends
from retain.sweeps.schema.section import (
    LOSSES,
    STAGE_KINDS,
    Loss,
    NotNegative,
    Number,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Whole,
)
from retain.sweeps.schema.validation_messages import validate

BEFORE_FINETUNING = LOSSES[0]
"""The one loss that is known before fine-tuning begins."""
Values = dict[str, Any]
"""A point: the value of each axis, by dotted path."""
MAX_CORNERS = 64


class Range(Section):
    """An axis that is a range: exactly one of these fields, as [lowest, highest]."""

    uniform: tuple[Number, Number] | None = None
    """The range of a field whose differences matter, such as a dropout rate."""
    loguniform: tuple[Number, Number] | None = None
    """The range of a field whose ratios matter, such as a learning rate. Both ends are above 0."""
    integers: tuple[Whole, Whole] | None = None
    """The range of a whole number, such as a batch size. Both ends belong to it."""

    @field_validator("*", mode="before")
    @classmethod
    def check_ends(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError(f"write [lowest, highest], or a list of values without {info.field_name}")
        return value

    @model_validator(mode="after")
    def check_kind(self) -> "Range":
        given = [name for name in Range.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give one of uniform, loguniform or integers, each as [lowest, highest]")
        low, high = getattr(self, given[0])
        if not low < high:
            raise ValueError(f"{given[0]}: [{low:g}, {high:g}] is empty; write the lower end first")
        if given == ["loguniform"] and low <= 0:
            raise ValueError(f"loguniform: {low:g} has no logarithm; start above 0, or use uniform")
        return self


class Objective(Section):
    """The objective of a search: one loss, a weighted sum of losses, or the frontier of two. A loss's name may stand for it."""

    loss: Loss | None = None
    """The loss to minimise: one of the paper's four, or STAGE/CORPUS as in `retain results --losses all`. Or a metric of a
    task, STAGE/TASK/METRIC, which is maximised if higher is better."""
    weighted: Annotated[dict[Loss, Number], Field(min_length=1)] | None = None
    """The weights of a sum of losses to minimise. A negative weight maximises its loss, or metric."""
    hypervolume: tuple[Loss, Loss] | None = None
    """The two losses whose frontier to improve: the set of points that no other point dominates."""

    @model_validator(mode="before")
    @classmethod
    def accept_loss_name(cls, value: Any) -> Any:
        if isinstance(value, list):
            plane = ", ".join(map(str, value)) if len(value) == 2 else "LOSS, LOSS"
            raise ValueError(f"expected one loss; for a frontier write {{hypervolume: [{plane}]}}")
        return {"loss": value} if isinstance(value, str) else value

    @field_validator("hypervolume", mode="before")
    @classmethod
    def check_plane(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, list | tuple) and len(value) == 2):
            raise ValueError("expected two losses; write [LOSS, LOSS]")
        return value

    @model_validator(mode="after")
    def check_kind(self) -> "Objective":
        if sum(getattr(self, name) is not None for name in Objective.model_fields) != 1:
            raise ValueError("give a loss, `weighted: {loss: weight}` or `hypervolume: [loss, loss]`")
        if self.hypervolume and self.hypervolume[0] == self.hypervolume[1]:
            raise ValueError("hypervolume: both losses are the same; name two different ones")
        if self.weighted and not any(self.weighted.values()):
            raise ValueError("weighted: all weights are 0; give at least one other weight")
        return self

    def scores(self, losses: Mapping[str, float], higher: Collection[str] = ()) -> tuple[float, ...]:
        """The values to minimise, computed from a point's losses: one number, or two for a frontier.

        higher: the metrics of which higher is better. They count with the opposite sign, but not in a sum, which has signs.
        """
        if not self.weighted:
            return tuple(-losses[name] if name in higher else losses[name] for name in self.losses())
        return (sum(weight * losses[name] for name, weight in (self.weighted or {}).items()),)

    def directions(self) -> set[tuple[Loss, int]]:
        """The losses in the objective, each with 1 if lower is better and -1 if higher is better (a negative weight)."""
        weights = self.weighted or dict.fromkeys(self.losses(), 1.0)
        return {(name, 1 if weight > 0 else -1) for name, weight in weights.items() if weight}

    def losses(self) -> tuple[str, ...]:
        """The losses that `scores` reads."""
        return self.hypervolume or tuple(self.weighted or {}) or ((self.loss,) if self.loss else ())

    def __str__(self) -> str:
        if self.hypervolume:
            return f"the frontier of {self.hypervolume[0]} and {self.hypervolume[1]}"
        return self.loss or " + ".join(f"{weight:g}·{name}" for name, weight in (self.weighted or {}).items())


class Constraint(Section):
    """A bound on a loss or metric, relative to the best point so far or absolute."""

    within: NotNegative | None = None
    """The share by which the loss may exceed the lowest loss of all points: 0.01 allows 1%. A metric of which higher is better
    may fall short of the highest by this share."""
    at_most: PositiveFloat | None = None
    """The largest loss allowed, in nats per token."""
    at_least: PositiveFloat | None = None
    """The smallest metric allowed, for one of which higher is better."""

    @model_validator(mode="before")
    @classmethod
    def reject_bare_number(cls, value: Any) -> Any:
        if not isinstance(value, dict | Constraint):
            share = value if isinstance(value, int | float) and not isinstance(value, bool) else "SHARE"
            raise ValueError(f"write {{within: {share}}} (a share of the best point's loss) or {{at_most: NATS}}")
        return value

    @model_validator(mode="after")
    def check_kind(self) -> "Constraint":
        if sum(getattr(self, name) is not None for name in Constraint.model_fields) != 1:
            raise ValueError("give either within: SHARE (of the best point's loss), at_most: NATS or at_least: METRIC")
        return self

    def violation(self, value: float, lowest: float, highest: float, higher: bool) -> float:
        """By how much a value breaks the bound. lowest, highest: of all points. higher: whether higher is better."""
        if self.at_least is not None:
            return self.at_least - value
        if self.within is None:
            return value - (self.at_most or math.inf)
        # A margin on pairs may be below 0, where a share of it still allows less than the best.
        best, worse = (highest, highest - value) if higher else (lowest, value - lowest)
        return worse - self.within * abs(best)

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g} nats" if self.within is None else f"within {self.within * 100:g}% of the best"


class Rungs(Section):
    """Early stopping of post-trainings by successive halving (ASHA): each rung stops the worse of those with one parent."""

    first: Annotated[Number, Field(gt=0, lt=1)] = 0.25
    """The first rung, as a share of the stage's tokens; each further rung has `factor` times as many. By default the rungs are
    at 1/4 and 1/2 of the stage."""
    factor: Annotated[Whole, Field(ge=2)] = 2
    """The best 1/factor of the post-trainings that have reached a rung continue. The default, 2, stops the fewest."""


class Probe(Section):
    """Early stopping of fine-tunings: a fine-tuning that enough others dominate after a share of its tokens is stopped."""

    at: Annotated[Number, Field(gt=0, lt=1)] = 0.25
    """The share of its tokens after which a fine-tuning is compared with others. The default saves up to 3/4 of the tokens."""
    factor: Annotated[Whole, Field(ge=2)] = 2
    """A fine-tuning is stopped if 1/factor of the comparable ones dominate it there. The default, 2, stops the fewest."""


class SearchBlock(Section):
    """The fields of a study's `search` section."""

    axes: Annotated[dict[str, Any], Field(min_length=1)]
    """The fields to search, by dotted path. Each has a list of values to choose from, or a range: {uniform: [a, b]},
    {loguniform: [a, b]} or {integers: [a, b]}."""
    objective: Objective = Objective(loss="retained_posttraining_loss")
    """The objective to minimise. The default is the retained post-training loss, the subject of the paper."""
    constraints: dict[Loss, Constraint] = Field(default_factory=dict)
    """Upper bounds on losses. Points that exceed one are not recommended. The default is none."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [0])
    """The seeds that each point is trained with. A point is judged by its mean over them. The default is the study's seed."""
    searcher: Literal["random", "grid", "tpe", "nsga2"] = "tpe"
    """How points are proposed. The default, tpe, follows a model of the losses; nsga2 suits frontiers."""
    trials: Positive = 50
    """The number of points to try at most."""
    digits: Annotated[Whole, Field(ge=1, le=12)] = 3
    """The number of significant digits of continuous values, so that nearly equal points share their stages."""
    grid_values: Annotated[Whole, Field(ge=2)] = 5
    """The number of values that the searcher `grid` takes of a continuous axis."""
    per_pretraining: Positive = 4
    """The number of points to try below one pretraining before the next one, as points that share it are cheap."""
    per_posttraining: Positive = 2
    """The number of points to try below one post-training, among those of `per_pretraining`."""
    prune: Rungs | None = None
    """Early stopping of post-trainings. Off by default: the loss during post-training does not tell what is retained."""
    probe: Probe | None = None
    """Early stopping of fine-tunings. Off by default: forgetting continues after the comparison."""
    seed: Seed = 0
    """The seed of the searcher."""

    @field_validator("seeds", mode="before")
    @classmethod
    def check_list(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"write a list: [{value}]")
        return value

    @model_validator(mode="after")
    def check_block(self) -> "SearchBlock":
        if repeated := {seed for seed in self.seeds if self.seeds.count(seed) > 1}:
            raise ValueError(f"seeds: {min(repeated)} is listed twice; remove one of them")
        if self.per_posttraining > self.per_pretraining:
            raise ValueError("per_posttraining: must not exceed per_pretraining; lower per_posttraining")
        if self.probe and {name for name, _ in self.directions()} == {BEFORE_FINETUNING}:
            raise ValueError(
                f"probe: the search is for {BEFORE_FINETUNING} only, which fine-tuning does not change; remove probe"
            )
        return self

    def directions(self) -> set[tuple[Loss, int]]:
        """The losses that are minimised or constrained, each with its direction as in `Objective.directions`."""
        return self.objective.directions() | {(name, 1) for name in self.constraints}

    def losses(self) -> tuple[str, ...]:
        """The losses that a point must have to be judged."""
        return tuple(dict.fromkeys((*self.objective.losses(), *self.constraints)))


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched field: a choice of values, or a range."""

    path: str
    """The dotted path of the field."""
    choices: tuple[Any, ...] | None = None
    """The values of a choice; None for a range."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Whether values are uniform in their logarithm."""
    whole: bool = False
    """Whether values are whole numbers."""
    digits: int = 3
    """The number of significant digits of continuous values."""

    def stage(self, chain: Sequence[str]) -> str:
        """The earliest stage of a chain that the field changes, judged by its path; the first for fields of the whole study."""
        section = self.path.partition(".")[0]
        exposed = "pretrain" in chain and self.path in ("posttrain.corpus", "posttrain.tokens")
        return section if section in chain and not exposed else chain[0]

    def at(self, share: float) -> Any:
        """The rounded value at a share, in [0, 1), of the axis; never outside its ends."""
        if self.choices is not None:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.whole:
            return min(int(self.low) + int(share * (int(self.high) - int(self.low) + 1)), int(self.high))
        if self.log:
            return self.rounded(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.rounded(self.low + share * (self.high - self.low))

    def rounded(self, value: float) -> Any:
        """The value with the axis's significant digits, within its ends."""
        if self.choices is not None:
            return value
        if self.whole:
            return int(value)
        return min(max(float(f"{value:.{self.digits}g}"), self.low), self.high)

    def fractional_value(self) -> float | None:
        """A value of this axis that is not a whole number; None if all are, by the axis's kind or after rounding."""
        if self.choices is not None or self.whole:
            return None
        # Rounding gets coarser towards the upper end, so a value near the lower end shows whether any value is fractional.
        for value in (self.low, math.floor(self.low) + 0.5, self.high):
            if self.low <= value <= self.high and self.rounded(value) % 1:
                return float(self.rounded(value))
        return None

    def spread(self, count: int) -> list[Any]:
        """`count` values spread over the axis with both ends, fewer if some are equal; all values of a choice."""
        if self.choices is not None:
            return list(self.choices)
        if self.whole:
            numbers = [round(self.low + step * (self.high - self.low) / (count - 1)) for step in range(count)]
            return list(dict.fromkeys(numbers))
        return list(dict.fromkeys([*(self.at(step / (count - 1)) for step in range(count - 1)), self.high]))

    def holds(self, value: Any) -> bool:
        """Whether a value, for instance of an earlier search, lies on this axis."""
        if self.choices is not None:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class SearchSpace:
    """A checked search section with its axes."""

    block: SearchBlock
    axes: tuple[Axis, ...]
    """The axes in the order of the stages that they change."""
    chain: tuple[str, ...] = STAGE_KINDS
    """The names of the stages of the study."""
    higher: frozenset[str] = frozenset()
    """The metrics of tasks of which higher is better, as STAGE/TASK/METRIC; known once the tasks are."""

    def corners(self) -> Iterator[Values]:
        """The corners of the space. If there are more than 64, each axis's ends, with all other axes at their first value."""
        sides = {axis.path: axis.spread(2) for axis in self.axes}
        if math.prod(map(len, sides.values())) <= MAX_CORNERS:
            yield from _product(sides)
            return
        first = {name: side[0] for name, side in sides.items()}
        yield first
        for name, side in sides.items():
            yield from (first | {name: value} for value in side[1:])

    def grid(self) -> Iterator[Values]:
        """All points of the searcher `grid`. The last axis varies fastest, so points that share a pretraining are adjacent."""
        return _product({axis.path: axis.spread(self.block.grid_values) for axis in self.axes})

    def names_of(self, stages: Sequence[str]) -> list[str]:
        """The paths of the axes that change one of these stages first."""
        return [axis.path for axis in self.axes if axis.stage(self.chain) in stages]


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[Values]:
    """Every point with one of the values of each axis; the last axis varies fastest."""
    for point in itertools.product(*values.values()):
        yield dict(zip(values, point, strict=True))


def read_search(raw: dict[str, Any], schema: type[BaseModel], file: str, chain: tuple[str, ...]) -> SearchSpace:
    """Read the search section of a study file's plain mapping. Each end and choice is validated as part of the whole study.

    chain: the names of the stages of the study. Raises StudyError.
    """
    block = validate(SearchBlock, {"seeds": [raw.get("seed", 0)]} | raw["search"], f"{file}: search.")
    study = {name: part for name, part in raw.items() if name != "search"}
    axes = [_axis(study, path, block, schema, f"{file}: search.axes.{path}") for path in block.axes]
    for axis, other in itertools.permutations(axes, 2):
        if f"{axis.path}.".startswith(f"{other.path}."):
            raise StudyError(f"{file}: search.axes: {axis.path} is a part of {other.path}; remove one of them")
    return SearchSpace(block, tuple(sorted(axes, key=lambda axis: chain.index(axis.stage(chain)))), chain)


def _axis(raw: dict[str, Any], path: str, block: SearchBlock, schema: type[BaseModel], where: str) -> Axis:
    values = block.axes[path]
    beside = [grid_settings(other, values_or_ends(block.axes[other])) for other in block.axes if other != path]
    if path == "seed" or path.endswith(".seed"):
        raise StudyError(f"{where}: seeds are replicates of a point, not an axis; list them under search.seeds")
    if path.endswith(".average"):
        raise StudyError(f"{where}: an average is measured once its stage is done; make it an axis of the grid")
    if isinstance(values, list):
        checked = grid_values(raw, path, values, schema, where, beside)
        # Numbers as the schema reads them, such as 200k. Sections of the study stay plain mappings.
        plain = [
            read if isinstance(read, int | float | str) else value for read, value in zip(checked, values, strict=True)
        ]
        return Axis(path, choices=tuple(plain))
    if not isinstance(values, dict):
        raise StudyError(
            f"{where}: invalid axis {values!r}; write a list of values, or {{uniform: [a, b]}}, {{loguniform: [a, b]}} or "
            "{integers: [a, b]}"
        )
    if is_section(schema, path) and (inner := [name for name in values if name not in Range.model_fields]):
        raise StudyError(f"{where}: write the axis as one dotted path: search: {{axes: {{{path}.{inner[0]}: ...}}}}")
    found = validate(Range, values, f"{where}: ")
    kind, (low, high) = next((name, ends) for name, ends in found if ends is not None)
    if path == "sequence_length":
        raise StudyError(
            f"{where}: a range is not possible, as data is packed per length; list lengths, as in [128, 256]"
        )
    axis = Axis(path, low=low, high=high, log=kind == "loguniform", whole=kind == "integers", digits=block.digits)
    if (inside := axis.fractional_value()) is not None and takes_whole_only(raw, path, inside, schema):
        first, last = math.ceil(low), math.floor(high)
        cure = f"write integers: [{first}, {last}]" if first < last else "write a list of whole numbers"
        raise StudyError(f"{where}: the field takes whole numbers only; {cure}")
    grid_values(raw, path, [low, high], schema, where, beside)
    return axis
