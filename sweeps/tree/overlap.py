"""How near two corpora are, as the store keeps it once it has been measured:

<store>/overlap/<digest>.json     of two packed corpora, by their fingerprints
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.keys import canonical

OVERLAP = "overlap"
"""The folder of the store."""
VERSION = 1
"""Raise it when what is measured changes: everything is measured again."""


@dataclass(frozen=True)
class Overlap:
    """How similar two packed corpora are. Lists have an entry for each of the two."""

    corpora: list[str]
    """Their fingerprints."""
    tokens: int
    """The number of training tokens of each whose n-grams are compared."""
    divergences: list[float]
    """The Jensen-Shannon divergences of unigrams, bigrams and trigrams, in nats: from 0, alike, to ln 2, nothing in common."""
    heldout_tokens: list[int]
    """The number of held-out tokens that cross-entropies are over."""
    cross_entropies: list[list[float | None]]
    """The loss on the held-out split of each (first index) under a trigram model of the training split of each (second index),
    in nats per token; None without held-out tokens."""
    documents: list[int]
    """The number of training documents that exact copies are looked for among."""
    shared: int
    """The number of documents that are in both."""
    compared: list[int]
    """The number of those that near duplicates are looked for among."""
    near: list[int]
    """The number of those with a near duplicate among the other corpus's, exact copies included."""

    def seen_from(self, corpus: str) -> "Overlap":
        """The same with this corpus first."""
        if self.corpora[0] == corpus:
            return self
        turned = {name: value[::-1] for name, value in asdict(self).items() if isinstance(value, list)}
        turned["divergences"] = self.divergences
        turned["cross_entropies"] = [row[::-1] for row in self.cross_entropies[::-1]]
        return Overlap(**asdict(self) | turned)


def overlap_path(store: Path, one: str, other: str) -> Path:
    """The file of what is known of two corpora, in whatever order they are named."""
    text = canonical({"corpora": sorted((one, other)), "version": VERSION})
    return store / OVERLAP / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def read_overlap(store: Path, one: str, other: str) -> Overlap | None:
    """How near two corpora are, the first one first; None if it has not been measured. Raises DamageError."""
    path = overlap_path(store, one, other)
    try:
        return read_overlap_file(path).seen_from(one)
    except FileNotFoundError:
        return None


def read_overlap_file(path: Path) -> Overlap:
    """The content of a file of overlap. Raises FileNotFoundError, DamageError."""
    cure = "delete the file, and retain overlap measures it again"
    found = read_document(path, Overlap, cure)
    counts = [found.heldout_tokens, found.documents, found.compared, found.near]
    lengths = [len(found.corpora), *map(len, counts), len(found.cross_entropies), *map(len, found.cross_entropies)]
    if len(found.divergences) != 3 or set(lengths) != {2}:
        raise DamageError(f"{path} is damaged (its lists have other lengths); {cure}")
    if path.name != overlap_path(path.parents[1], *found.corpora).name:
        raise DamageError(f"{path} is that of other corpora; {cure}")
    return found


def write_overlap(store: Path, overlap: Overlap) -> None:
    """Keep how near two corpora are in the store."""
    path = overlap_path(store, *overlap.corpora)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_document(path, asdict(overlap))
