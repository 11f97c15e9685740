"""Evaluation runs: each measures the weights that one stage ends with on one corpus or one task, and trains nothing.

The key of an evaluation hashes the key of the stage and what is measured: the fingerprint of the corpus, the sequence length
and the values by which the loss is also given, or the recipe of the task (`data_facts.TaskFacts`). The stage's key decides the
model, the tokeniser and whether tokens attend within documents. The whole held-out split is measured. As in training runs, the
precision of the arithmetic is no part of the key.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import (
    FURTHER,
    GROUNDWORK,
    LOSSES,
    PAIR_MEASURES,
    REFERENCE,
    is_metric,
    loss_name,
    unknown_loss,
    value_name,
    without_value,
)
from retain.sweeps.tree.data_facts import HeldoutValues, TaskFacts
from retain.sweeps.tree.heldout_splits import PREFERENCES, preferences_of, used_corpora
from retain.sweeps.tree.keys import HELDOUT_LOSS, TASK, canonical, stage_key
from retain.sweeps.tree.recipes.preference import objective_of
from retain.sweeps.tree.tree import Stage, Tree

EVALUATE = "evaluate"
"""The stage name of evaluation runs."""


def evaluation_of(
    stage: Stage,
    name: str,
    fingerprint: str,
    length: int,
    tokens: int = 0,
    average: float = 1.0,
    values: HeldoutValues | None = None,
    preferences: Mapping[str, Any] | None = None,
) -> Stage:
    """The evaluation run of a stage on a corpus, as a stage below it.

    tokens: those of the held-out split, if known. average: the weights that it measures, from 0, the start of the stage, to 1,
    its end. values: those by which the loss is also given. preferences: for pairs, the entry of `preferences_by_stage`.
    """
    fields: dict[str, Any] = {"corpus": fingerprint, "measure": HELDOUT_LOSS, "sequence_length": length}
    if values is not None:
        fields["by"] = values.fingerprint
    also: tuple[str, ...] = ()
    if preferences is not None:
        fields[PREFERENCES], also = dict(preferences), (preferences[REFERENCE],)
    return _evaluation(stage, fields, {"evaluate.corpora": name}, tokens, average, also)


def task_evaluation_of(stage: Stage, name: str, task: TaskFacts, average: float = 1.0) -> Stage:
    """The evaluation run of a stage on a task, as a stage below it. average: as in `evaluation_of`."""
    return _evaluation(stage, {"measure": TASK, **task.recipe}, {"evaluate.tasks": name}, 0, average)


def _evaluation(
    stage: Stage,
    fields: dict[str, Any],
    named: dict[str, str],
    tokens: int,
    average: float,
    needs: tuple[str, ...] = (),
) -> Stage:
    axes = stage.axes | {"evaluate.at": stage.stage} | named
    if average != 1:
        fields["average"] = average
        axes = axes | {f"{stage.stage}.average": average}
    recipe = canonical(fields)
    also = (stage.parent,) if average != 1 and stage.parent else ()
    return Stage(stage_key(FURTHER, stage.key, recipe), EVALUATE, stage.key, recipe, tokens, axes, (*also, *needs))


def preferences_by_stage(tree: Tree) -> dict[str, dict[str, dict[str, Any]]]:
    """The corpora on whose pairs each stage is measured (`evaluation.preferences_of`), by the key of the stage; often empty."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in (one for one in tree.stages.values() if one.stage not in (*GROUNDWORK, EVALUATE)):
        above = found.get(stage.parent, {}) if stage.parent else {}
        if above or objective_of(stage.recipe) is not None:
            found[stage.key] = preferences_of(stage.parent, json.loads(stage.recipe), above)
    return found


def measures_of_pairs(tree: Tree) -> dict[str, dict[str, str]]:
    """The corpora of `preferences_by_stage`: by the key of the stage, the name of each by its fingerprint."""
    names = {fingerprint: name for (name, _), fingerprint in tree.corpora.items()}
    return {
        key: {corpus: names[corpus] for corpus in pairs if corpus in names}
        for key, pairs in preferences_by_stage(tree).items()
    }


def corpora_after(tree: Tree) -> dict[tuple[str, int], dict[str, str]]:
    """The corpora whose losses the study has after each stage: by the stage's name and sequence length, fingerprint by name.

    Those that some stage trains on come first, then those that `evaluate` names for this stage.
    """
    used = used_corpora(tree)
    found: dict[tuple[str, int], dict[str, str]] = {}
    for length in dict.fromkeys(length for _, length in tree.corpora):
        for stage in (name for name in tree.chain if name not in GROUNDWORK):
            own = {name: tree.corpora.get((name, length)) for name in tree.measured.get(stage, ())}
            # Of several studies planned together, only one may have the corpus at this length.
            known = {name: fingerprint for name, fingerprint in own.items() if fingerprint is not None}
            found[stage, length] = used.get(length, {}) | known
    return found


def asked_evaluations(tree: Tree, heldout: Mapping[tuple[str, int], int] | None = None) -> dict[str, Stage]:
    """The evaluations that `evaluate` and averages of weights ask for, by key, in the order of the stages.

    None of them is made by a training run. heldout: the tokens of the held-out splits, by corpus and sequence length.
    """
    found = averaged_evaluations(tree, heldout or {})
    if not tree.measured:
        return found
    used = used_corpora(tree)
    for stage in tree.stages.values():
        names = tree.measured.get(stage.stage, ())
        length = json.loads(stage.recipe)["sequence_length"] if names else 0
        for name in names:
            fingerprint = tree.corpora.get((name, length))
            if fingerprint is not None and fingerprint not in used.get(length, {}).values():
                tokens = (heldout or {}).get((name, length), 0)
                one = evaluation_of(stage, name, fingerprint, length, tokens, values=tree.values.get((name, length)))
                found[one.key] = one
        for name, task in tree.tasks.get(stage.stage, {}).items():
            one = task_evaluation_of(stage, name, task)
            found[one.key] = one
    return found


def asked_columns(tree: Tree) -> dict[str, bool]:
    """What a study asks for besides the matrix of its corpora, and whether higher is better; by stage.

    That is what `evaluate` measures, as STAGE/CORPUS and STAGE/TASK/METRIC, and STAGE/CORPUS[VALUE] for corpora with `by`; of
    pairs that are learned from, STAGE/CORPUS/dpo_loss and so on.
    """
    found: dict[str, bool] = {}
    for key, corpora in measures_of_pairs(tree).items():
        for name in corpora.values():
            stage = tree.stages[key].stage
            found |= {loss_name(stage, f"{name}/{metric}"): higher for metric, higher in PAIR_MEASURES.items()}
    if tree.values:
        for (stage, length), names in corpora_after(tree).items():
            for name in names:
                if (values := tree.values.get((name, length))) is not None:
                    found |= {loss_name(stage, value_name(name, value)): False for value in values.names}
    for stage in tree.measured:
        found |= {loss_name(stage, corpus): False for corpus in tree.measured[stage]}
        for task, facts in tree.tasks.get(stage, {}).items():
            found |= {loss_name(stage, f"{task}/{metric}"): higher for metric, higher in facts.metrics.items()}
    return found


def check_objective(file: StudyFile, tree: Tree) -> None:
    """Raise StudyError if the search of a study wants a metric that none of its tasks has, or a value of no document."""
    if file.search is None:
        return
    block, known = file.search.block, asked_columns(tree)
    named = [name for name in known if is_metric(name) or without_value(name) != name]
    prepared = {name for name, _ in tree.values}
    for name in (name for name in block.losses() if name not in known):
        corpus = without_value(name).partition("/")[2]
        if is_metric(name) or (without_value(name) != name and corpus in prepared):
            field = "objective" if name in block.objective.losses() else "constraints"
            raise StudyError(f"{file.path.name}: search.{field}: {unknown_loss(name, [*LOSSES, *named])}")


def averaged_evaluations(tree: Tree, heldout: Mapping[tuple[str, int], int]) -> dict[str, Stage]:
    """The evaluations of averaged weights that trials ask for, by key: on every corpus and task of the study."""
    averages = {(trial.leaf, trial.average): None for trial in tree.trials if trial.average != 1}
    corpora = corpora_after(tree) if averages else {}
    preferences = preferences_by_stage(tree) if averages else {}
    found: dict[str, Stage] = {}
    for key, average in averages:
        stage = tree.stages[key]
        length = json.loads(stage.recipe)["sequence_length"]
        for name, fingerprint in corpora[stage.stage, length].items():
            tokens, values = heldout.get((name, length), 0), tree.values.get((name, length))
            pairs = preferences.get(key, {}).get(fingerprint)
            one = evaluation_of(stage, name, fingerprint, length, tokens, average, values, pairs)
            found[one.key] = one
        for name, task in tree.tasks.get(stage.stage, {}).items():
            one = task_evaluation_of(stage, name, task, average)
            found[one.key] = one
    return found
