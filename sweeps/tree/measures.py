"""Evaluation runs: each measures the weights that one stage ends with on one corpus or one task, and trains nothing.

The key of an evaluation hashes the key of the stage and what is measured: the fingerprint of the corpus and the sequence
length, or the recipe of the task (`data_facts.TaskFacts`). The stage's key decides the model, the tokeniser and whether tokens
attend within documents. The whole held-out split is measured. As in training runs, the precision of the arithmetic is no part
of the key.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import FISHER, FURTHER, LOSSES, loss_name, unknown_loss
from retain.sweeps.tree.data_facts import TaskFacts
from retain.sweeps.tree.evaluation import used_corpora
from retain.sweeps.tree.keys import MEASURE, TASK, canonical, stage_key
from retain.sweeps.tree.tree import Stage, Tree

EVALUATE = "evaluate"
"""The name of evaluation runs where stages have theirs."""


def evaluation_of(
    stage: Stage, name: str, fingerprint: str, length: int, tokens: int = 0, average: float = 1.0
) -> Stage:
    """The evaluation run of a stage on a corpus, as a stage below it.

    tokens: those of the held-out split, if known. average: the weights that it measures, from 0, the start of the stage, to 1,
    its end.
    """
    fields = {"corpus": fingerprint, "measure": MEASURE, "sequence_length": length}
    return _evaluation(stage, fields, {"evaluate.corpora": name}, tokens, average)


def task_evaluation_of(stage: Stage, name: str, task: TaskFacts, average: float = 1.0) -> Stage:
    """The evaluation run of a stage on a task, as a stage below it. average: as of `evaluation_of`."""
    return _evaluation(stage, {"measure": TASK, **task.recipe}, {"evaluate.tasks": name}, 0, average)


def _evaluation(stage: Stage, fields: dict[str, Any], named: dict[str, str], tokens: int, average: float) -> Stage:
    axes = stage.axes | {"evaluate.at": stage.stage} | named
    if average != 1:
        fields["average"] = average
        axes = axes | {f"{stage.stage}.average": average}
    recipe = canonical(fields)
    also = (stage.parent,) if average != 1 and stage.parent else ()
    return Stage(stage_key(FURTHER, stage.key, recipe), EVALUATE, stage.key, recipe, tokens, axes, also)


def corpora_after(tree: Tree) -> dict[tuple[str, int], dict[str, str]]:
    """The corpora whose losses the study has after each stage: by the stage's name and sequence length, fingerprint by name.

    Those that some stage trains on come first, then those that `evaluate` names for this stage.
    """
    used = used_corpora(tree)
    found: dict[tuple[str, int], dict[str, str]] = {}
    for length in dict.fromkeys(length for _, length in tree.corpora):
        for stage in (name for name in tree.chain if name != FISHER):
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
                one = evaluation_of(stage, name, fingerprint, length, tokens)
                found[one.key] = one
        for name, task in tree.tasks.get(stage.stage, {}).items():
            one = task_evaluation_of(stage, name, task)
            found[one.key] = one
    return found


def asked_columns(tree: Tree) -> dict[str, bool]:
    """What `evaluate` measures, as STAGE/CORPUS and STAGE/TASK/METRIC, and whether higher is better; by stage."""
    found: dict[str, bool] = {}
    for stage in tree.measured:
        found |= {loss_name(stage, corpus): False for corpus in tree.measured[stage]}
        for task, facts in tree.tasks.get(stage, {}).items():
            found |= {loss_name(stage, f"{task}/{metric}"): higher for metric, higher in facts.metrics.items()}
    return found


def check_objective(file: StudyFile, tree: Tree) -> None:
    """Raise StudyError if the search of a study wants a metric that none of its tasks has."""
    if file.search is None:
        return
    block, known = file.search.block, asked_columns(tree)
    metrics = [name for name in known if name.count("/") > 1]
    for name in (name for name in block.losses() if name.count("/") > 1 and name not in known):
        field = "objective" if name in block.objective.losses() else "constraints"
        raise StudyError(f"{file.path.name}: search.{field}: {unknown_loss(name, [*LOSSES, *metrics])}")


def averaged_evaluations(tree: Tree, heldout: Mapping[tuple[str, int], int]) -> dict[str, Stage]:
    """The evaluations of averaged weights that trials ask for, by key: on every corpus and task of the study."""
    averages = {(trial.leaf, trial.average): None for trial in tree.trials if trial.average != 1}
    corpora = corpora_after(tree) if averages else {}
    found: dict[str, Stage] = {}
    for key, average in averages:
        stage = tree.stages[key]
        length = json.loads(stage.recipe)["sequence_length"]
        for name, fingerprint in corpora[stage.stage, length].items():
            one = evaluation_of(stage, name, fingerprint, length, heldout.get((name, length), 0), average)
            found[one.key] = one
        for name, task in tree.tasks.get(stage.stage, {}).items():
            one = task_evaluation_of(stage, name, task, average)
            found[one.key] = one
    return found
