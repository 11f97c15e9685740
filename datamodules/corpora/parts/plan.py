"""The corpora of a study that are cut into parts, and what the parts are called."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.hub import is_on_hub
from retain.datamodules.corpora.packing import Division
from retain.datamodules.corpora.parts.cut import Cut, Part, Piece, cut_source
from retain.datamodules.corpora.responses.study_documents import pinned_corpus
from retain.datamodules.corpora.sources import (
    FORMAT,
    Source,
    corpora_with_splits,
    naming_corpus,
    read_source,
    withheld_share,
)
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.keys import canonical, stage_key

STAGE = "prepare"
"""The stage of a run that prepares a part."""
ASSEMBLY = "assemble"
"""The stage of a run that puts parts together."""


@dataclass(frozen=True)
class CutCorpus:
    """A corpus of a study, cut into parts for one tokeniser."""

    name: str
    corpus: Corpus
    """Pinned to a commit."""
    cut: Cut
    source: Source
    """What identifies the source; see `sources.read_source`."""
    tokenizer: str
    """The fingerprint of the tokeniser."""
    withheld: float
    """As in `Division`."""

    @property
    def division(self) -> Division:
        """How documents are divided by their hashes alone."""
        return Division(self.corpus.heldout_share, self.withheld)

    def recipe(self, part: Part) -> dict[str, Any]:
        """What decides the files of a part. Files are in it that the part reads, and no others of the source."""
        whole = part.shard is not None or not part.pieces
        named = {field: value for field, value in self.source.items() if whole or field != "files"}
        shards = {"shards": self.cut.shards} if part.shard is not None else {}
        return {"format": FORMAT, "source": named, **shards, **part.identity, "tokenizer": self.tokenizer}

    def key(self, part: Part) -> str:
        """The key of the run that prepares a part."""
        return stage_key(STAGE, None, canonical(self.recipe(part)))

    @functools.cached_property
    def keys(self) -> dict[str, Part]:
        """The parts by their keys, in the order in which a budget uses them up."""
        return {self.key(part): part for part in self.cut.in_turn}


def cut_corpus(file: StudyFile, name: str, tokenizer: str, corpus: Corpus) -> CutCorpus:
    """Cut a corpus of a study as its `execution.data` says. Raises StudyError, MissingResourceError that name it.

    corpus: the same, pinned, or its copy in the store.
    """
    with naming_corpus(file, name):
        cut = cut_source(corpus, file.folder, file.study.execution.data.part)
    source = {field: value for field, value in read_source(file, name).items() if not field.startswith("heldout")}
    source |= {"revision": corpus.revision} if corpus.hf is not None else {}
    return CutCorpus(name, corpus, cut, source, tokenizer, withheld_share(file))


Cuts = Mapping[str, tuple[CutCorpus, tuple[int, ...]]]
"""Corpora in parts by name, and the sequence lengths at which they are packed."""


def cut_corpora(file: StudyFile, store: Path, packings: Sequence[tuple[str, int]], tokenizer: str) -> Cuts:
    """Cut corpora of a study; those of one part are left out, as are those of the hub that are not in the store.

    No corpus is cut if held-out splits must be read from the hub: processes that put parts together have no network.

    packings: names and sequence lengths.
    """
    found: dict[str, tuple[CutCorpus, tuple[int, ...]]] = {}
    if any(is_on_hub(pinned_corpus(file, name, store), file.folder) for name in corpora_with_splits(file)):
        return found
    for name in dict.fromkeys(name for name, _ in packings):
        corpus = pinned_corpus(file, name, store)
        # Near copies are found in texts, and parts keep only tokens. Parts of pairs do not exist.
        if not is_on_hub(corpus, file.folder) and corpus.dedupe != "near" and not corpus.is_pairs:
            cut = cut_corpus(file, name, tokenizer, corpus)
            if len(cut.cut.parts) > 1:
                found[name] = (cut, tuple(length for other, length in packings if other == name))
    return found


def part_of(recipe: Mapping[str, Any]) -> Part:
    """The part that a recipe describes."""
    pieces = tuple(Piece(*fields) for fields in recipe.get("pieces", ()))
    return Part(sum(piece.end - piece.begin for piece in pieces), pieces, recipe.get("shard"))
