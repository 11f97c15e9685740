"""The anchor of a stage in its recipe, and the estimate of the Fisher information that an anchor with `ewc` needs.

The estimate is a run of its own (FISHER) below the stage that the anchored one starts from. Its recipe stands whole in that of
the anchored stage, so both keys hash what decides it: corpus, shuffle, number and length of the sequences. The parent's key
decides the weights, the tokeniser and whether tokens attend within documents.
"""

import json
from collections.abc import Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import FISHER, FURTHER
from retain.sweeps.schema.stages import Adaptable, Optimisation
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.recipes.preference import unit_of

Recipe = dict[str, Any]
FIELDS_BEFORE = ("", ".corpus", ".tokens", ".skip", ".objective", ".objective.dpo")
"""The fields of the stage before on which an estimate depends."""


def anchor_recipe(study: Study, facts: Facts, stage: Adaptable, name: str) -> Recipe:
    """The entry `anchor` of a recipe; empty without a penalty.

    Raises StudyError if the Fisher information cannot be estimated on as many sequences as `sequences` says.
    """
    anchor, made = stage.anchor, Recipe()
    if anchor is not None and anchor.l2sp:
        made["l2sp"] = anchor.l2sp
    if anchor is not None and anchor.ewc:
        assert anchor.sequences is not None
        made |= {"ewc": anchor.ewc, FISHER: _estimate(study, facts, name, anchor.sequences)}
    return {"anchor": made} if made else {}


def fields_of_stage_before(stage: str, file: StudyFile) -> set[str]:
    """The paths of the fields of the stage before that the recipe of a stage depends on, as its estimate does; often empty.

    Where the stage before may be left out, also those of the one before that.
    """
    before, own = (
        file.study.stages[: file.study.stages.index(stage)],
        getattr(getattr(file.study, stage), "anchor", None),
    )
    paths = [path for options in file.dimensions for option in options for path in option.fields]
    varied = any(path == stage or f"{path}.".startswith(f"{stage}.anchor.") for path in paths)
    found: set[str] = set()
    if varied or (own is not None and own.ewc):
        for one in reversed(before):
            found |= {f"{one}{field}" for field in FIELDS_BEFORE}
            if 0 not in file.values(f"{one}.tokens"):
                break
    return found


def _estimate(study: Study, facts: Facts, name: str, sequences: int) -> Recipe:
    """The recipe of the estimate for a stage, on the corpus of the stage before; stages of 0 tokens are left out."""
    earlier = reversed(study.stages[: study.stages.index(name)])
    before = next(stage for stage in earlier if study.section(stage).tokens)
    section = study.section(before)
    assert isinstance(section, Optimisation)
    # Of pairs, the chosen responses.
    length, unit = study.sequence_length, unit_of(section)
    first, count = getattr(section, "skip", 0) // (unit * length), section.tokens // (unit * length)
    if sequences > count:
        raise StudyError(
            f"{name}.anchor.sequences: {sequences:,} sequences are more than the {count:,} that {before} takes of corpus "
            f"{section.corpus}; lower {name}.anchor.sequences, or raise {before}.tokens"
        )
    return {
        "measure": FISHER,
        "corpus": facts.corpora[section.corpus, length].fingerprint,
        "sequences": sequences,
        "sequence_length": length,
        "subset_seed": study.subset_seed,
        **({"first": first} if first else {}),
    }


def estimate_of(recipe: str) -> Recipe | None:
    """The recipe of the estimate that the canonical recipe of a stage needs; None if it needs none."""
    if f'"{FISHER}":{{' not in recipe:
        return None
    found: Recipe = json.loads(recipe)["anchor"][FISHER]
    return found


def estimate_key(parent: str, estimate: Mapping[str, Any]) -> str:
    """The key of an estimate of the Fisher information at the weights of a stage, from its recipe."""
    return stage_key(FURTHER, parent, canonical(estimate))
