"""The part of a recipe that says which checkpoint a model starts from, and what a study must not ask of the checkpoint."""

from collections.abc import Collection, Mapping
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.families.table import FAMILIES
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import UNPREPARED, CheckpointFacts, Facts, checkpoint_of
from retain.sweeps.tree.keys import canonical


def checkpoint_recipe(study: Study, facts: Facts) -> dict[str, Any]:
    """The architecture of the study's checkpoint and, unless its weights are to be fresh, the fingerprint of its content.

    Raises StudyError if the checkpoint does not fit the study's sequences or tokeniser.
    """
    found = facts.checkpoints[checkpoint_of(study.model)]
    # What is not known before the checkpoint is prepared is 0.
    if found.context and study.sequence_length > found.context:
        raise StudyError(
            f"sequence_length: {study.sequence_length} exceeds the context of {found.context} of {study.model.hf}; lower "
            "sequence_length, or start from another checkpoint"
        )
    if found.vocabulary and facts.vocabulary > found.vocabulary:
        own = "leave tokenizer out to take the checkpoint's own" if study.tokenizer else "restore its config.json"
        raise StudyError(
            f"tokenizer: its {facts.vocabulary} entries exceed the {found.vocabulary} rows of the embedding of "
            f"{study.model.hf}; {own}"
        )
    known = found.prepared and not facts.tokenizer.startswith(UNPREPARED)
    if known and study.tokenizer is None and found.tokenizer != facts.tokenizer:
        raise StudyError(
            f"model.hf: {study.model.hf} has another tokeniser than the study's other checkpoints; name one tokeniser "
            "for all of them with tokenizer, or compare them in several studies"
        )
    return _architecture(found, fresh=study.model.weights == "random")


def adapter_targets(study: Study, facts: Facts, targets: Collection[str], stage: str) -> list[str]:
    """The names of the matrices that a stage's adapters are for, without names that the model's family lacks.

    Raises StudyError if the family cannot have adapters on these alone.
    """
    names = sorted(set(targets))
    found = facts.checkpoints.get(checkpoint_of(study.model))
    if found is None or not found.family:
        return names
    family = FAMILIES[found.family]
    if problem := family.target_problem(names):
        raise StudyError(f"{stage}.lora.targets: {problem}")
    return [name for name in names if family.targets([name])]


def counts_by_model(facts: Facts) -> Mapping[str, ModelCounts]:
    """The numbers of parameters of every checkpoint of a study, by the model of a recipe as canonical text."""
    return {
        canonical(_architecture(found, fresh=checkpoint[2] == "random")): found.counts
        for checkpoint, found in facts.checkpoints.items()
        if found.counts is not None
    }


def _architecture(found: CheckpointFacts, fresh: bool) -> dict[str, Any]:
    """The model of a recipe; a placeholder while the checkpoint is unprepared."""
    if not found.prepared:
        return {"start": found.fingerprint}
    model = {"family": found.family, "config": dict(found.config)}
    return model if fresh else model | {"start": found.fingerprint}
