"""How near the corpora of a study are: every two of them, measured once and kept in the store."""

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from retain.datamodules.corpora.near.minhash import SHINGLE_WORDS
from retain.datamodules.corpora.overlap.duplicates import SIMILARITY
from retain.datamodules.corpora.overlap.measure import (
    DOCUMENT_TOKENS,
    HELDOUT_TOKENS,
    NEAR_DOCUMENTS,
    TRAINING_TOKENS,
    CorpusSample,
    overlap_of,
)
from retain.datamodules.corpora.prepared import packed_corpus, stored_tokenizer
from retain.launchers.planning.opened_study import OpenedStudy
from retain.sweeps.base.errors import MAY_NOT, NO_ROOM, DamageError, StudyError, os_reason
from retain.sweeps.base.notices import notice
from retain.sweeps.schema.section import GROUNDWORK, STAGE_KINDS
from retain.sweeps.tree.overlap import Overlap, read_overlap, write_overlap
from retain.sweeps.tree.tree import Tree

SYMBOLS = dict(zip(STAGE_KINDS, ("D_pre", "D_post", "D_ft"), strict=True))
"""The paper's symbols for the corpora of its stages."""
SAMPLE = {
    "training_tokens": TRAINING_TOKENS,
    "heldout_tokens": HELDOUT_TOKENS,
    "document_tokens": DOCUMENT_TOKENS,
    "near_documents": NEAR_DOCUMENTS,
    "shingle_words": SHINGLE_WORDS,
    "similarity": SIMILARITY,
}
"""The bounds of what is compared, and what near duplicates are."""


@dataclass(frozen=True)
class CorpusPair:
    """How similar two corpora of a study are."""

    names: tuple[str, str]
    """Their names in the study."""
    roles: tuple[list[str], list[str]]
    """What trains on each: D_pre, D_post and D_ft, or the name of another stage."""
    sequence_length: int
    """In tokens; they are packed with it."""
    overlap: Overlap
    """How similar they are, the first of `names` first."""


@dataclass(frozen=True)
class Overlaps:
    """What `retain overlap` prints."""

    study: str
    """Its name."""
    sample: Mapping[str, Any]
    """The bounds of what is compared, and what near duplicates are."""
    pairs: list[CorpusPair]
    """Every two corpora with the same sequence length."""


def measure_overlaps(opened: OpenedStudy, say: Callable[[str], None]) -> Overlaps:
    """How near every two corpora of a study are; measures what its store does not know, and keeps it if it can.

    say: called with a line before a pair is measured. Raises StudyError if the study has fewer than two corpora.
    """
    tree, store = opened.tree, opened.store.root
    if len({name for name, _ in tree.corpora}) < 2:
        raise StudyError(f"{opened.file.path.name}: there are no two corpora to compare; name another study")
    roles, pairs = _roles(tree), []

    @cache
    def sample(fingerprint: str) -> CorpusSample:
        return CorpusSample(packed_corpus(store, fingerprint), stored_tokenizer(store, opened.facts.tokenizer))

    for ((one, length), first), ((other, theirs), second) in itertools.combinations(tree.corpora.items(), 2):
        if length != theirs:
            continue
        found = None
        with contextlib.suppress(DamageError):  # it is measured again
            found = read_overlap(store, first, second)
        if found is None:
            say(f"comparing {one} and {other}")
            try:
                found = overlap_of(sample(first), sample(second))
            except StudyError as error:
                raise StudyError(f"{opened.file.path.name}: corpora.{one} and corpora.{other}: {error}") from None
            try:
                write_overlap(store, found)
            except OSError as error:
                if error.errno not in (*MAY_NOT, *NO_ROOM):
                    raise
                notice(f"{store} cannot be written ({os_reason(error)}), so this pair is measured again next time")
        pairs.append(CorpusPair((one, other), (roles.get(first, []), roles.get(second, [])), length, found))
    return Overlaps(tree.study, SAMPLE, pairs)


def _roles(tree: Tree) -> dict[str, list[str]]:
    """What trains on each corpus of a tree, by its fingerprint."""
    found: dict[str, dict[str, None]] = {}
    for stage in tree.stages.values():
        if stage.stage not in GROUNDWORK:
            found.setdefault(json.loads(stage.recipe)["corpus"], {})[SYMBOLS.get(stage.stage, stage.stage)] = None
    return {corpus: sorted(roles, key=[*SYMBOLS.values(), *roles].index) for corpus, roles in found.items()}
