"""Evaluation runs: each measures the weights that one stage ends with on one corpus, and trains nothing.

The key of an evaluation hashes the key of the stage, the fingerprint of the corpus and the sequence length. The stage's key
decides the model, the tokeniser and whether tokens attend within documents. The whole held-out split is measured. As in
training runs, the precision of the arithmetic is no part of the key.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.schema.section import FISHER, FURTHER
from retain.sweeps.tree.evaluation import used_corpora
from retain.sweeps.tree.keys import MEASURE, canonical, stage_key
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
    fields: dict[str, Any] = {"corpus": fingerprint, "measure": MEASURE, "sequence_length": length}
    axes = stage.axes | {"evaluate.at": stage.stage, "evaluate.corpora": name}
    if average != 1:
        fields["average"] = axes[f"{stage.stage}.average"] = average
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
    return found


def averaged_evaluations(tree: Tree, heldout: Mapping[tuple[str, int], int]) -> dict[str, Stage]:
    """The evaluations of averaged weights that trials ask for, by key: on every corpus of the study."""
    averages = {(trial.leaf, trial.average): None for trial in tree.trials if trial.average != 1}
    corpora = corpora_after(tree) if averages else {}
    found: dict[str, Stage] = {}
    for key, average in averages:
        stage = tree.stages[key]
        length = json.loads(stage.recipe)["sequence_length"]
        for name, fingerprint in corpora[stage.stage, length].items():
            one = evaluation_of(stage, name, fingerprint, length, heldout.get((name, length), 0), average)
            found[one.key] = one
    return found
