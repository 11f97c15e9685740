"""The tree of stages of a study: every trial is a path, every stage that trials share is one node."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import Option
from retain.sweeps.schema.linear import (
    LinearStudy,
    linear_finetune_recipe,
    linear_posttrain_recipe,
    linear_pretrain_recipe,
)
from retain.sweeps.schema.read import AnyStudy, StudyFile, check_together
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.recipes import Recipe, finetune_recipe, posttrain_recipe, pretrain_recipe

STAGES = ("pretrain", "posttrain", "finetune")
BUILDERS: Mapping[type[AnyStudy], Mapping[str, Callable[[Any, Facts], Recipe | None]]] = {
    Study: {"pretrain": pretrain_recipe, "posttrain": posttrain_recipe, "finetune": finetune_recipe},
    LinearStudy: {
        "pretrain": linear_pretrain_recipe,
        "posttrain": linear_posttrain_recipe,
        "finetune": linear_finetune_recipe,
    },
}
EXPOSED = ("posttrain", "posttrain.corpus", "posttrain.tokens")
"""The fields of post-training that say what is mixed into pretraining."""
Axes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One node: trained once, whoever shares it."""

    key: str
    stage: str
    """pretrain, posttrain or finetune."""
    parent: str | None
    recipe: str
    """Canonical text."""
    tokens: int
    """Tokens it trains at most."""
    axes: Axes
    """The values of the study's axes that lead to it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One path from the root to a leaf; `posttrain` is None where matched allocation leaves Stage 2 nothing."""

    axes: Axes
    pretrain: str
    posttrain: str | None
    finetune: str

    @property
    def path(self) -> tuple[str, ...]:
        return tuple(key for key in (self.pretrain, self.posttrain, self.finetune) if key is not None)


@dataclass(frozen=True)
class Tree:
    """Stages by key, parents before children, and the trials in the order of the grid."""

    study: str
    stages: dict[str, Stage]
    trials: list[Trial]
    provisional: bool
    """True while the keys stand for data that is yet to be prepared."""

    def ancestors(self, key: str) -> list[Stage]:
        """The path from the root to this stage, itself included."""
        stage = self.stages[key]
        return [*(self.ancestors(stage.parent) if stage.parent else []), stage]


def expand(file: StudyFile, facts: Facts) -> Tree:
    """All trials of a study's grid. Raises StudyError for a point of the grid that makes no sense."""
    dimensions = file.dimensions
    labels = [[_plain_values(option.labels) for option in options] for options in dimensions]
    stages: dict[str, Stage] = {}
    trials = []
    grow = {stage: _Family(stage, file, facts, dimensions, stages) for stage in STAGES}
    for point in itertools.product(*(range(len(options)) for options in dimensions)):
        pre = grow["pretrain"].member(None, point)
        assert pre is not None
        post = grow["posttrain"].member(pre, point)
        leaf = grow["finetune"].member(post or pre, point)
        assert leaf is not None
        axes: Axes = {}
        for shown, index in zip(labels, point, strict=True):
            axes |= shown[index]
        trials.append(Trial(axes, pre, post, leaf))
    return Tree(file.study.study, stages, trials, provisional=not facts.prepared)


class _Family:
    """The stages of one kind, each recipe made once for each combination of the options that it depends on."""

    def __init__(
        self, stage: str, file: StudyFile, facts: Facts, dimensions: list[list[Option]], stages: dict[str, Stage]
    ) -> None:
        self.stage, self.file, self.facts, self.dimensions, self.stages = stage, file, facts, dimensions, stages
        self.relevant = [
            number
            for number, options in enumerate(dimensions)
            if any(may_matter(path, stage) for option in options for path in option.fields)
        ]
        self.recipes: dict[tuple[int, ...], tuple[str, int] | None] = {}
        self.keys: dict[tuple[str | None, str], str] = {}

    def member(self, parent: str | None, point: tuple[int, ...]) -> str | None:
        """The key of this kind's stage at a point, the number of an option on each axis; None where there is none."""
        own = tuple([point[number] for number in self.relevant])
        if own not in self.recipes:
            self.recipes[own] = self._recipe(own)
        made = self.recipes[own]
        if made is None:
            return None
        recipe, tokens = made
        key = self.keys.get((parent, recipe))
        if key is None:
            key = self.keys[parent, recipe] = stage_key(self.stage, parent, recipe)
            inherited = self.stages[parent].axes if parent else {}
            fields = {path: value for option in self._options(own) for path, value in option.fields.items()}
            named = _plain_values({path: value for path, value in fields.items() if self._names(path, recipe)})
            self.stages[key] = Stage(key, self.stage, parent, recipe, tokens, inherited | named)
        return key

    def _options(self, own: tuple[int, ...]) -> list[Option]:
        return [self.dimensions[number][index] for number, index in zip(self.relevant, own, strict=True)]

    def _recipe(self, own: tuple[int, ...]) -> tuple[str, int] | None:
        options = self._options(own)
        try:
            study = self.file.study
            for option in options:
                study = with_values(study, option.fields)
            if self.stage == "pretrain":
                check_together(study, "model")
            check_together(study, self.stage)
            recipe = BUILDERS[type(study)][self.stage](study, self.facts)
        except StudyError as error:
            at = ", ".join(f"{name}={value}" for option in options for name, value in option.labels.items())
            raise StudyError(f"{self.file.path.name}: {error}{f' (at {at})' if at else ''}") from None
        if recipe is None:
            return None
        return canonical(recipe), recipe["sequences"] * study.sequence_length

    def _names(self, path: str, recipe: str) -> bool:
        """Whether a field belongs to this kind's label: its own and the study's, and D_post's where it is mixed in."""
        section = path.partition(".")[0]
        if self.stage == "pretrain" and section == "posttrain":
            return path in EXPOSED and '"exposure":null' not in recipe
        if self.stage == "pretrain" and section == "allocation":
            return False  # both allocations share their pretrainings
        return section == self.stage or section not in STAGES


def merged(trees: Sequence[Tree]) -> Tree:
    """Several studies as one tree: a stage or a whole trial that they share is there once, under its first axes."""
    if len(trees) == 1:
        return trees[0]
    stages: dict[str, Stage] = {}
    trials: dict[tuple[str, ...], Trial] = {}
    for tree in trees:
        for key, stage in tree.stages.items():
            stages.setdefault(key, stage)
        for trial in tree.trials:
            trials.setdefault(trial.path, trial)
    names = "+".join(tree.study for tree in trees)
    return Tree(names, stages, list(trials.values()), any(tree.provisional for tree in trees))


def may_matter(axis: str, stage: str) -> bool:
    """Whether an axis can change the recipe of a kind of stage; a superset is safe, as keys come from recipes."""
    section = axis.partition(".")[0]
    if section not in STAGES or section == stage:
        return True
    if stage == "pretrain":
        return axis in EXPOSED
    return stage == "posttrain" and axis in ("pretrain", "pretrain.exposure", "pretrain.corpus", "pretrain.tokens")


def with_values(study: AnyStudy, axes: Axes) -> AnyStudy:
    """A study with checked values put in their places."""
    for axis, value in axes.items():
        study = _replaced(study, axis.split("."), value)
    return study


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    inner = _replaced(getattr(section, name) or _left_out(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def _left_out(section: BaseModel, name: str) -> BaseModel:
    """The defaults of a section that a study leaves out and an axis sets a field of; `check_together` judges the whole."""
    kinds = get_args(type(section).model_fields[name].annotation)
    kind: type[BaseModel] = next(kind for kind in kinds if issubclass(kind, BaseModel))
    return kind.model_construct()


def plain(value: Any) -> Any:
    """An axis value as a table or JSON shows it: a section of the study becomes its mapping, or its preset's name."""
    if not isinstance(value, BaseModel):
        return value
    fields = value.model_dump(exclude_none=True)
    return fields["preset"] if set(fields) == {"preset"} else fields


def _plain_values(axes: Axes) -> Axes:
    return {name: plain(value) for name, value in axes.items()}


def axes_label(axes: Axes) -> str:
    """`pretrain.exposure=0.5 finetune.lr=5e-05`; `-` for none."""
    return " ".join(f"{name}={value}" for name, value in axes.items()) or "-"


def device_mismatch(file: StudyFile) -> str | None:
    """The sentence about a batch that the devices, or a micro-batch, do not divide; None where all do."""
    execution = file.study.execution
    for stage in STAGES:
        devices = execution.of_stage(stage).devices
        field = "execution.devices" if devices == execution.devices else f"execution.stages.{stage}.devices"
        for batch in file.values(f"{stage}.batch"):
            if batch % devices:
                return f"{stage}.batch: {batch} sequences are not divided by {field}: {devices}"
    return None
