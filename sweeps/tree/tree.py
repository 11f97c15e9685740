"""The tree of stages of a study: a trial is a path from the root to a leaf, and a stage that trials share is one node."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.yaml_text import written
from retain.sweeps.schema.axes import Option, get_field
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import AnyStudy, StudyFile, check_section, measured_corpora, measured_stages
from retain.sweeps.schema.section import REFERENCE, STAGE_KINDS, in_one_order, stage_kind
from retain.sweeps.schema.stages import Component
from retain.sweeps.tree.data_facts import Facts, HeldoutValues, TaskFacts
from retain.sweeps.tree.keys import CARRY, canonical, stage_key
from retain.sweeps.tree.recipes.anchor import fields_of_stage_before
from retain.sweeps.tree.recipes.checkpoint import counts_by_model
from retain.sweeps.tree.recipes.groundwork import groundwork
from retain.sweeps.tree.recipes.linear import linear_stage_recipe
from retain.sweeps.tree.recipes.optimisation import carry_problem
from retain.sweeps.tree.recipes.point import average_of, may_affect_average, study_at
from retain.sweeps.tree.recipes.preference import Recipe
from retain.sweeps.tree.recipes.stage import check_heldout, stage_recipe

EXPOSED = ("posttrain", "posttrain.corpus", "posttrain.tokens")
"""The fields of post-training that decide what is mixed into pretraining."""
OBJECTIVE = "posttrain.objective"
"""Whether post-training has one decides that too: only the chosen responses of pairs are mixed in. Its strength does not."""
Axes = dict[str, Any]
"""The value of each axis, by its dotted path or the name of its cases."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One node of the tree. It is trained once, however many trials share it."""

    key: str
    stage: str
    """The name of the stage, such as pretrain."""
    parent: str | None
    """The key of the parent stage; None for the first stage."""
    recipe: str
    """The recipe as canonical JSON text."""
    tokens: int
    """The number of tokens that the stage trains on. An upper bound, as early stopping may end the stage sooner."""
    axes: Axes
    """The values of the study's axes that lead to this stage."""
    also: tuple[str, ...] = ()
    """The keys of the runs besides the parent that must be done before it begins."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of the runs that must be done before the stage begins."""
        return (self.parent, *self.also) if self.parent else self.also


@dataclass(frozen=True, slots=True)
class Trial:
    """One path from the root to a leaf, as stage keys."""

    axes: Axes
    names: tuple[str, ...]
    """The names of the stages of the chain."""
    keys: tuple[str | None, ...]
    """The key of each stage; None for a stage that has nothing to train, as Stage 2 may with matched allocation."""
    average: float = 1.0
    """The weights whose losses are the trial's: from 0, the start of the last stage, to 1, its end (WiSE-FT)."""

    def key(self, stage: str) -> str | None:
        """The key of the stage with this name; None if the trial has no such stage."""
        return self.keys[self.names.index(stage)] if stage in self.names else None

    @property
    def path(self) -> tuple[str, ...]:
        """The keys of the trial's stages, root first."""
        return tuple([key for key in self.keys if key is not None])

    @property
    def leaf(self) -> str:
        """The key of the last stage."""
        return self.path[-1]


@dataclass(frozen=True)
class Tree:
    """The stages and trials of a study."""

    study: str
    """The name of the study."""
    stages: dict[str, Stage]
    """The stages by key, parents before children."""
    trials: list[Trial]
    """The trials in the order of the grid."""
    provisional: bool
    """True while a corpus or a checkpoint is unprepared. The keys change once it is prepared."""
    corpora: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """The fingerprints of the study's corpora, by name and sequence length; a linear study has none."""
    models: Mapping[str, ModelCounts] = field(default_factory=dict)
    """The numbers of parameters of models that start from a checkpoint, by the model in their recipe as canonical text."""

    measured: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The corpora that `evaluate` measures after each stage, by the name of the stage."""
    tasks: Mapping[str, Mapping[str, TaskFacts]] = field(default_factory=dict)
    """The tasks that `evaluate` measures after each stage, by the name of the stage and of the task."""
    values: Mapping[tuple[str, int], HeldoutValues] = field(default_factory=dict)
    """The values by which losses on a corpus are given, by its name and sequence length; only for corpora with `by`."""

    @property
    def chain(self) -> list[str]:
        """The names of all stages in the order of their chains; GROUNDWORK comes before the first stage that needs it."""
        names = in_one_order(trial.names for trial in self.trials)
        for stage in (stage for stage in self.stages.values() if stage.stage in names):
            for need in (self.stages[key].stage for key in stage.also if key in self.stages):
                if need not in names:
                    names.insert(names.index(stage.stage), need)
        # A part of a tree may have no trials; its stages have parents before children.
        return list(dict.fromkeys([*names, *(stage.stage for stage in self.stages.values())]))

    @property
    def trials_without_sharing(self) -> list[Trial]:
        """The trials that would be trained if no stages were shared. All averages of one training count once."""
        leaves = {trial.leaf for trial in self.trials if trial.average == 1}
        averaged = {trial.leaf: trial for trial in self.trials if trial.leaf not in leaves}
        return [*(trial for trial in self.trials if trial.average == 1), *averaged.values()]

    def carried(self) -> set[str]:
        """The keys of the stages with whose AdamW a stage below continues."""
        return {stage.parent for stage in self.stages.values() if stage.parent and CARRY in stage.recipe}

    def ancestors(self, key: str) -> list[Stage]:
        """The stages that this stage needs, directly or not, those that others need first; this stage is the last one."""
        stage = self.stages[key]
        above = {one.key: one for need in stage.needs for one in self.ancestors(need)}
        return [*above.values(), stage]

    def runs_of(self, trial: Trial) -> list[str]:
        """The keys of the runs that a trial needs: those of its path, each after the others that it needs."""
        return list(dict.fromkeys(run for key in trial.path for run in (*self.stages[key].also, key)))


def expand(file: StudyFile, facts: Facts) -> Tree:
    """The tree of all trials of a study. Raises StudyError for an invalid point of the grid."""
    check_heldout(file, facts)
    dimensions = file.dimensions
    labels = [[_plain_axes(option.labels) for option in options] for options in dimensions]
    stages: dict[str, Stage] = {}
    trials = []
    names = file.study.stages
    builders = [_StageBuilder(stage, file, facts, dimensions, stages) for stage in names]
    averaged = [
        n for n, options in enumerate(dimensions) if any(may_affect_average(option, names) for option in options)
    ]
    averages: dict[tuple[int, ...], float] = {}
    for point in itertools.product(*(range(len(options)) for options in dimensions)):
        parent: str | None = None
        chain: list[str | None] = []
        for builder in builders:
            chain.append(builder.stage_at(point, parent))
            parent = chain[-1] or parent
        axes: Axes = {}
        for shown, index in zip(labels, point, strict=True):
            axes |= shown[index]
        chosen = tuple([point[n] for n in averaged])
        if chosen not in averages:
            options = [dimensions[n][point[n]] for n in averaged]
            try:
                averages[chosen] = average_of(study_at(file.study, options))
            except ValueError as error:
                raise _error_at(options, str(error), file) from None
        trials.append(Trial(axes, names, tuple(chain), averages[chosen]))
    corpora = {place: corpus.fingerprint for place, corpus in facts.corpora.items()}
    measured = dict.fromkeys(measured_stages(file.study), measured_corpora(file.study))
    tasks = dict.fromkeys(measured, facts.tasks)
    values = {place: corpus.values for place, corpus in facts.corpora.items() if corpus.values is not None}
    models = counts_by_model(facts)
    return Tree(file.study.study, stages, trials, not facts.prepared, corpora, models, measured, tasks, values)


class _StageBuilder:
    """Builds the stages of one name. Each recipe is built once per combination of the options that can affect it."""

    def __init__(
        self, stage: str, file: StudyFile, facts: Facts, dimensions: list[list[Option]], stages: dict[str, Stage]
    ) -> None:
        self.stage, self.file, self.facts, self.dimensions, self.stages = stage, file, facts, dimensions, stages
        read, chain = fields_of_stage_before(stage, file), file.study.stages
        self.relevant = [
            number
            for number, options in enumerate(dimensions)
            if any(path in read or may_affect(path, stage, chain) for option in options for path in option.fields)
        ]
        self.recipes: dict[tuple[int, ...], tuple[str, int] | None] = {}
        self.keys: dict[tuple[str | None, str], str] = {}
        self.labels: dict[tuple[int, ...], Axes] = {}
        self.last: tuple[str | None, tuple[int, ...]] | None = None
        """The parent and the options of the stage that was asked for last; points of the grid in turn share most stages."""
        self.key: str | None = None
        """The key of this stage."""

    def stage_at(self, point: tuple[int, ...], parent: str | None) -> str | None:
        """The key of the stage at a point of the grid, added to the stages if it is new; None if the point has none.

        point: the number of the chosen option on each axis. parent: the key of the parent stage.
        """
        own = tuple([point[number] for number in self.relevant])
        if (parent, own) != self.last:
            self.last, self.key = (parent, own), self._stage_with(own, parent)
        return self.key

    def _stage_with(self, own: tuple[int, ...], parent: str | None) -> str | None:
        """`stage_at` by the numbers of the options that can affect the stage."""
        if own not in self.recipes:
            self.recipes[own] = self._recipe(own)
        made = self.recipes[own]
        if made is None:
            return None
        recipe, tokens = made
        key = self.keys.get((parent, recipe))
        if key is None:
            if parent and CARRY in recipe:
                self._check_carry(recipe, self.stages[parent], own)
            key = self.keys[parent, recipe] = stage_key(stage_kind(self.stage), parent, recipe)
            inherited = self.stages[parent].axes if parent else {}
            if own not in self.labels:
                self.labels[own] = _plain_axes(self._own_labels(own, recipe))
            named = self.labels[own]
            also = self._groundwork(parent, recipe, named)
            self.stages[key] = Stage(key, self.stage, parent, recipe, tokens, inherited | named, also)
        return key

    def _options(self, own: tuple[int, ...]) -> list[Option]:
        return [self.dimensions[number][index] for number, index in zip(self.relevant, own, strict=True)]

    def _own_labels(self, own: tuple[int, ...], recipe: str) -> Axes:
        """The values that label a stage, besides those of its parent."""
        labels: Axes = {}
        for option in self._options(own):
            labels |= {path: value for path, value in option.fields.items() if self._is_label(path, recipe)}
        if self.stage == "pretrain" and labels.get(OBJECTIVE) is not None:
            labels[OBJECTIVE] = "dpo"  # all strengths share this pretraining
        return labels

    def _recipe(self, own: tuple[int, ...]) -> tuple[str, int] | None:
        options = self._options(own)
        try:
            study = study_at(self.file.study, options)
            if self.stage == study.stages[0]:
                check_section(study, "model")
            check_section(study, self.stage)
            recipe = _recipe_of(study, self.facts, self.stage)
        except StudyError as error:
            raise _error_at(options, str(error), self.file) from None
        if recipe is None:
            return None
        return canonical(recipe), recipe["sequences"] * study.sequence_length

    def _check_carry(self, recipe: str, parent: Stage, own: tuple[int, ...]) -> None:
        """Raise StudyError if AdamW's state at the end of a parent does not belong to the weights that a stage trains."""
        if problem := carry_problem(self.stage, recipe, parent.stage, parent.recipe):
            problem = f"{self.stage}.start: the optimizer cannot be carried over: {problem}"
            raise _error_at(self._options(own), problem, self.file)

    def _groundwork(self, parent: str | None, recipe: str, named: Axes) -> tuple[str, ...]:
        """The keys of the runs besides its parent that a stage needs, added to the stages if they are new.

        A stage below one that learns from pairs needs its reference too, as it is measured on these pairs.
        """
        above = self.stages[parent] if parent else None
        inherited = above.axes if above else {name: value for name, value in named.items() if self._is_study_wide(name)}
        also = [key for key in above.also if self.stages[key].stage == REFERENCE] if above else []
        for one in groundwork(self.stage, parent, recipe, self.facts):
            axes = {**inherited, **one.label}
            self.stages.setdefault(one.key, Stage(one.key, one.name, parent, one.recipe, one.tokens, axes))
            also.append(one.key)
        return tuple(dict.fromkeys(also))

    def _has_text_and_pairs(self) -> bool:
        """Whether post-training has an objective in some trials, and none in others."""
        own = get_field(self.file.study, OBJECTIVE)
        axes = [options for options in self.dimensions if any(OBJECTIVE in one.fields for one in options)]
        return len({one.fields.get(OBJECTIVE, own) is None for options in axes for one in options}) == 2

    def _is_study_wide(self, path: str) -> bool:
        return path.partition(".")[0] not in self.file.study.stages

    def _is_label(self, path: str, recipe: str) -> bool:
        """Whether a field labels this kind of stage: fields of the stage and the study, and D_post's if it is mixed in."""
        section, _, name = path.partition(".")
        if name == "average":
            return False  # of the losses of a trial, not of its stages
        if self.stage == "pretrain" and section == "posttrain":
            decides = path in EXPOSED or (path == OBJECTIVE and self._has_text_and_pairs())
            return decides and '"exposure":null' not in recipe
        stages = self.file.study.stages
        if section == "allocation":
            # Both allocations share the stages before post-training.
            return "posttrain" in stages[: stages.index(self.stage) + 1]
        return section == self.stage or self._is_study_wide(path)


def _error_at(options: Sequence[Option], problem: str, file: StudyFile) -> StudyError:
    """The error for a problem of a study at a point, which is named by its options."""
    at = ", ".join(axes_label(_plain_axes({name: value})) for one in options for name, value in one.labels.items())
    return StudyError(f"{file.path.name}: {problem}{f' (at {at})' if at else ''}")


def _recipe_of(study: AnyStudy, facts: Facts, stage: str) -> Recipe | None:
    """The recipe of a stage; None if it has nothing to train. Raises StudyError."""
    if isinstance(study, LinearStudy):
        return linear_stage_recipe(study, stage)
    return stage_recipe(study, facts, stage)


def may_affect(axis: str, stage: str, stages: Collection[str] = STAGE_KINDS) -> bool:
    """Whether an axis can change the recipe of a stage of a chain.

    Too many axes only cost time: stages with equal recipes get equal keys anyway.
    """
    section = axis.partition(".")[0]
    if section not in stages or section == stage:
        return True
    if stage == "pretrain":
        return axis in EXPOSED or axis.startswith("posttrain.objective")
    # Exposure and the corpus decide what is left and what is replayed, and no `mix` may repeat it in matched allocation.
    read = ("pretrain", "pretrain.exposure", "pretrain.corpus", "pretrain.tokens")
    return stage == "posttrain" and (axis in read or axis.startswith("pretrain.mix"))


def plain_value(value: Any) -> Any:
    """An axis value as tables and JSON show it: a section of the study as a mapping, or as the name of its preset."""
    if isinstance(value, Component):
        return value.model_dump(exclude_defaults=True)
    if isinstance(value, Mapping):
        return {name: plain_value(part) for name, part in value.items()}
    if isinstance(value, tuple) and any(isinstance(part, Component) for part in value):
        return [plain_value(part) for part in value]
    if not isinstance(value, BaseModel):
        return value
    fields = value.model_dump(exclude_none=True)
    return fields["preset"] if set(fields) == {"preset"} else fields


def _plain_axes(axes: Axes) -> Axes:
    return {name: plain_value(value) for name, value in axes.items()}


def axes_label(axes: Axes) -> str:
    """Axes as one line, such as `pretrain.exposure=0.5 finetune.lr=5e-05`; `-` if there are none."""
    return " ".join(f"{name}={written(value)}" for name, value in axes.items()) or "-"
