"""The objective of a stage in its recipe, and the reference log-probabilities that DPO needs.

The log-probabilities of all pairs of a corpus are a run of their own (REFERENCE), at the weights that the stage starts from.
Its recipe stands whole in that of the stage, so both keys hash what decides it: the corpus and the sequence length. The key of
the parent decides the weights, the tokeniser and whether tokens attend within documents; where a checkpoint is the start, the
recipe does. So all stages that start there with the corpus share one run, whatever their β, learning rate, order and number of
pairs.

Recipes count sequences, and a pair is two of them.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.section import FURTHER, REFERENCE
from retain.sweeps.schema.stages import Adaptable, Optimisation
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.recipes.mixture import components

Recipe = dict[str, Any]
PAIR = 2
"""The sequences of a pair: the chosen response to a prompt, and the rejected one."""
COUNTS = ("batch", "distinct", "first", "sequences")
"""The fields of a recipe that count sequences."""


def unit_of(stage: Optimisation) -> int:
    """The sequences that a stage reads together: a pair, or one."""
    return PAIR if getattr(stage, "objective", None) is not None else 1


def objective_recipe(study: Study, facts: Facts, stage: Adaptable, name: str) -> Recipe:
    """The entry `objective` of a recipe; empty for the next-token loss. Raises StudyError if the stage cannot have it."""
    if stage.objective is None:
        return {}
    field, cure = f"{name}.objective", f"or remove {name}.objective"
    if not study.corpora[stage.corpus].is_pairs:
        pairs = [corpus for corpus, one in study.corpora.items() if one.is_pairs]
        known = f"corpora of pairs: {', '.join(pairs)}" if pairs else "no corpus of the study has them"
        raise StudyError(
            f"{field}: dpo trains on pairs, and corpus {stage.corpus} has no chosen and rejected ({known}); name a corpus of "
            f"pairs, {cure}"
        )
    if any(components(name, stage)):
        raise StudyError(f"{name}.mix: a stage with objective reads the pairs of its corpus alone; remove mix, {cure}")
    if getattr(stage, "replay", 0):
        raise StudyError(
            f"{name}.replay: a stage with objective reads the pairs of its corpus alone; remove replay, {cure}"
        )
    if name == "posttrain" and study.allocation == "matched":
        raise StudyError(
            f"allocation: matched divides one pass over D_post, and {name} with objective trains on it in another way than "
            f"pretrain; set allocation: additive, {cure}"
        )
    if stage.batch % PAIR:
        raise StudyError(
            f"{name}.batch: {stage.batch} sequences are not whole pairs of two; write an even number, {cure}"
        )
    reference = {
        "measure": REFERENCE,
        "corpus": facts.corpora[stage.corpus, study.sequence_length].fingerprint,
        "sequence_length": study.sequence_length,
    }
    return {"objective": {"dpo": stage.objective.dpo, REFERENCE: reference}}


def with_start(recipe: Recipe) -> Recipe:
    """The recipe of a stage that starts from a checkpoint, whose reference names that start too."""
    if "objective" not in recipe:
        return recipe
    start = {field: recipe[field] for field in ("model", "tokenizer", "documents") if field in recipe}
    objective = recipe["objective"]
    return recipe | {"objective": objective | {REFERENCE: objective[REFERENCE] | start}}


def in_pairs(recipe: Mapping[str, Any]) -> Recipe:
    """The recipe of a stage with pairs, with its counts in pairs."""
    return {name: value // PAIR if name in COUNTS else value for name, value in recipe.items()}


def objective_of(recipe: str) -> Recipe | None:
    """The objective in the canonical recipe of a stage; None for the next-token loss."""
    if '"objective":{' not in recipe:
        return None
    found: Recipe | None = json.loads(recipe).get("objective")
    return found


def reference_key(parent: str | None, reference: Mapping[str, Any]) -> str:
    """The key of the reference log-probabilities of a stage, from its parent's key and the recipe that its objective has."""
    return stage_key(FURTHER, parent, canonical(reference))
