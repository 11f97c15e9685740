"""The runs that a stage needs besides its parent, as its recipe has them: estimates for its anchor, and its reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retain.sweeps.schema.section import FISHER, REFERENCE
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.keys import canonical
from retain.sweeps.tree.recipes.anchor import estimate_key, estimate_of
from retain.sweeps.tree.recipes.preference import PAIR, objective_of, reference_key


@dataclass(frozen=True)
class Groundwork:
    """A run that a stage needs, at the weights that the stage starts from."""

    key: str
    name: str
    """One of GROUNDWORK."""
    recipe: str
    """The recipe as canonical JSON text."""
    tokens: int
    """The tokens that it reads; 0 while its corpus is not prepared."""
    label: Mapping[str, Any]
    """What tells it from others of its name, by field of the study."""


def groundwork(stage: str, parent: str | None, recipe: str, facts: Facts) -> Iterator[Groundwork]:
    """The runs that a stage needs. stage: its name. parent: its parent's key. recipe: its canonical recipe."""
    if parent is not None and (estimate := estimate_of(recipe)) is not None:
        count = estimate["sequences"]
        tokens, label = count * estimate["sequence_length"], {f"{stage}.anchor.sequences": count}
        yield Groundwork(estimate_key(parent, estimate), FISHER, canonical(estimate), tokens, label)
    if (objective := objective_of(recipe)) is not None:
        reference = objective[REFERENCE]
        (name, length), corpus = next(one for one in facts.corpora.items() if one[1].fingerprint == reference["corpus"])
        tokens = ((corpus.train or 0) + (corpus.heldout or 0)) * PAIR * length
        label = {f"{stage}.corpus": name}
        yield Groundwork(reference_key(parent, reference), REFERENCE, canonical(reference), tokens, label)
