"""What the parts of a corpus are called, and which of them a budget needs."""

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
    """A corpus of a study, cut into parts, which a tokeniser is to encode."""

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

    None is cut if held-out splits must be read from the hub, as processes that put parts together have no network.

    packings: names and sequence lengths.
    """
    found: dict[str, tuple[CutCorpus, tuple[int, ...]]] = {}
    if any(is_on_hub(pinned_corpus(file, name, store), file.folder) for name in corpora_with_splits(file)):
        return found
    for name in dict.fromkeys(name for name, _ in packings):
        corpus = pinned_corpus(file, name, store)
        # Near copies are found in the text, of which parts keep the tokens alone. Pairs are kept apart.
        if not is_on_hub(corpus, file.folder) and corpus.dedupe != "near" and not corpus.is_pairs:
            cut = cut_corpus(file, name, tokenizer, corpus)
            if len(cut.cut.parts) > 1:
                found[name] = (cut, tuple(length for other, length in packings if other == name))
    return found


def part_of(recipe: Mapping[str, Any]) -> Part:
    """The part that a recipe describes."""
    pieces = tuple(Piece(*fields) for fields in recipe.get("pieces", ()))
    return Part(sum(piece.end - piece.begin for piece in pieces), pieces, recipe.get("shard"))


@dataclass(frozen=True)
class Made:
    """What is known of a part that is prepared."""

    tokens: int
    """The tokens of documents that no part before it has."""
    trained: int
    """Those of them in the training split."""


def needed_parts(cut: CutCorpus, made: Mapping[str, Made], at_once: int | None = None) -> list[str]:
    """The keys of the parts to prepare next, so that the budget is reached with as little surplus as can be known.

    made: the parts that are prepared, by key. Without one, a budget needs the first part, from which the others are estimated.
    at_once: the most parts for each that is made, so that the estimate grows better before it is relied on; None: all of them.
    """
    keys, budget = cut.keys, cut.corpus.tokens
    if budget is None:
        return [key for key in keys if key not in made]
    if not made:
        return list(keys)[:1]
    tokens, known = sum(one.tokens for one in made.values()), sum(keys[key].bytes for key in made)
    # The hashes of documents decide on their split, so its share is known better than from some of them.
    share = 1 - max(cut.withheld, cut.corpus.heldout_share)
    total, missing = 0.0, []
    for key, part in keys.items():
        if total >= budget:
            break
        if key in made:
            total += made[key].trained
        else:
            total += share * tokens * (part.bytes / known if known else 1 / len(made))
            missing.append(key)
    return missing[: len(made) * at_once] if at_once else missing
