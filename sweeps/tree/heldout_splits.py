"""The held-out splits on which the weights of a stage are evaluated, by role and by corpus.

A role says what a corpus is on the path of a run: `posttraining` is the corpus of its post-training. Roles name the paper's
four losses. The other corpora of the study go by their own names; they fill the matrix of stages and corpora.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.schema.section import GROUNDWORK, REFERENCE, STAGE_KINDS
from retain.sweeps.tree.recipes.preference import reference_key
from retain.sweeps.tree.tree import Tree

ROLES: Mapping[str, str] = dict(zip(STAGE_KINDS, ("pretraining", "posttraining", "finetuning"), strict=True))
PREFERENCES = "preferences"
"""The field of stage.json with the corpora on whose pairs a stage is measured, and of losses.json with the results."""
TUNE, REPORT = "tune", "report"
"""The halves of a held-out split: the one that early stopping selects on, and the one that is reported."""


def role_of(stage: str) -> str:
    """The role of the corpus that a stage trains on; a stage besides the paper's three gives it its own name."""
    return ROLES.get(stage, stage)


def preference_split(split: str) -> str:
    """The name of the DPO loss on the pairs of a split, in the place of the name of a split."""
    return f"{split}-dpo"


def tune_split(role: str) -> str:
    """The name of the half on which early stopping selects."""
    return f"{role}-{TUNE}"


def evaluation(stage: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The held-out splits that a stage adds to those of its ancestors: the fingerprint of the corpus, by role.

    A pretraining is evaluated on D_post by role only at λ > 0: at λ = 0 its run is the same for every D_post.
    """
    roles = {role_of(stage): recipe["corpus"]}
    if exposure := recipe.get("exposure"):
        roles["posttraining"] = exposure["corpus"]
    return roles


def corpora_by_role(tree: Tree) -> dict[str, dict[str, str]]:
    """The corpora on the path of each stage, by its key and their role; none in a linear study.

    A corpus is named as in the study; of studies that are planned together and differ in it, one has its fingerprint.
    """
    names = {fingerprint: name for (name, _), fingerprint in tree.corpora.items()}
    found: dict[str, dict[str, str]] = {}
    for key, stage in tree.stages.items():
        added = evaluation(stage.stage, json.loads(stage.recipe)) if names and stage.stage not in GROUNDWORK else {}
        above = found[stage.parent] if stage.parent else {}
        found[key] = above | {role: names.get(corpus, corpus) for role, corpus in added.items()}
    return found


def halves(stage: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """By role, which half of its split a stage and the stages below it are reported on; empty if all of it."""
    settings = recipe.get("early_stopping") or {}
    return {role_of(stage): REPORT} if settings.get("split") == TUNE else {}


def splits_of(stage: str, recipe: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage's stage.json that say what it is evaluated on.

    above: those of the parent; empty for the root.
    """
    known = {role: corpus for role, corpus in above.get("evaluation", {}).items() if not role.endswith(f"-{TUNE}")}
    known |= evaluation(stage, recipe)
    inherited = {role: half for role, half in above.get("halves", {}).items() if half == REPORT}
    own = halves(stage, recipe)
    known |= {tune_split(role): recipe["corpus"] for role in own}
    # A later stage that trains on a role again, without a tune split of its own, is reported on the same half.
    made = inherited | own | {tune_split(role): TUNE for role in own}
    return {"evaluation": known} | ({"halves": made} if made else {})


def preferences_of(parent: str | None, recipe: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The corpora on whose pairs a stage is measured, by fingerprint: those that it or a stage above it learns from.

    Each has the β and the key of the reference of the last stage that learns from it. above: those of the parent.
    """
    known = dict(above)
    if objective := recipe.get("objective"):
        key = reference_key(parent, objective[REFERENCE])
        known[recipe["corpus"]] = {"dpo": objective["dpo"], REFERENCE: key}
    return known


def used_corpora(tree: Tree) -> dict[int, dict[str, str]]:
    """The corpora that the stages of a study read: by sequence length, the fingerprint by name."""
    found: dict[int, dict[str, str]] = {}
    for (name, length), fingerprint in tree.corpora.items():
        if any(f'"{fingerprint}"' in stage.recipe for stage in tree.stages.values()):
            found.setdefault(length, {})[name] = fingerprint
    return found


def other_splits(roles: Mapping[str, Any], corpora: Mapping[str, str]) -> dict[str, str]:
    """The corpora of a study that a run is evaluated on besides those with a role: the fingerprint by name.

    A name that is taken by another corpus gets the beginning of the fingerprint. Readers go by the fingerprint.
    """
    found: dict[str, str] = {}
    for name, fingerprint in corpora.items():
        if fingerprint not in (*roles.values(), *found.values()):
            found[name if name not in roles else f"{name}-{fingerprint[:8]}"] = fingerprint
    return found
