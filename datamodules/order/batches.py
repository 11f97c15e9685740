"""The batches of a stage as one rank reads them: the batch of any step, straight from the packed corpora."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.prepared import PackedCorpus, packed_corpus
from retain.datamodules.order.digest import add_digests, sequence_digest
from retain.datamodules.order.mixtures import Order, stage_order
from retain.datamodules.order.permutation import Indices
from retain.datamodules.order.prefetch import MappedSequences
from retain.sweeps.tree.recipes.preference import PAIR, in_pairs

BLOCK = 2**14
"""The most sequences located at once. A sequence takes 100 times as long if each is located alone."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RankBatch:
    """The sequences that one rank reads in one step; the pairs of a stage with pairs."""

    step: int
    source: Indices
    """For each sequence or pair, the index of its corpus among the order's subsets."""
    sequence: Indices
    """For each sequence or pair, its index in that corpus."""

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Batches:
    """The batches of a stage on one of `world` ranks.

    Rank r reads sequences r, r + world, r + 2·world, ... of each batch, so the global batch does not depend on the number
    of ranks. The last batch may be smaller, and empty on some ranks. With pairs, order and batch count pairs, and ranks read
    whole pairs: a chosen response, then the rejected one.
    """

    order: Order
    corpora: Mapping[str, PackedCorpus]
    batch: int
    """Sequences of one step, over all ranks; the pairs of a stage with pairs."""
    rank: int = 0
    world: int = 1
    pairs: bool = False

    def __len__(self) -> int:
        return -(-self.order.total // self.batch)

    @cached_property
    def sources(self) -> tuple[MappedSequences, ...]:
        """The training sequences of each of the order's subsets, opened at first use."""
        corpora = (self.corpora[subset.corpus] for subset in self.order.subsets)
        return tuple(MappedSequences(corpus.sequences("train"), corpus.mask("train")) for corpus in corpora)

    @cached_property
    def rejected(self) -> tuple[MappedSequences, ...]:
        """With pairs, the rejected responses of each of the order's subsets; none otherwise."""
        corpora = (self.corpora[subset.corpus] for subset in self.order.subsets if self.pairs)
        return tuple(
            MappedSequences(corpus.sequences("train", rejected=True), corpus.mask("train", rejected=True))
            for corpus in corpora
        )

    @property
    def masked(self) -> bool:
        """Whether some corpus of the stage has tokens that are not predicted."""
        return any(corpus.masked for corpus in self.corpora.values())

    def positions(self, step: int) -> Indices:
        """Return the positions of the stage that this rank reads in a step; with pairs, those of its pairs."""
        first = step * self.batch
        return np.arange(first + self.rank, min(first + self.batch, self.order.total), self.world, dtype=np.int64)

    def from_step(self, first: int) -> Iterator[RankBatch]:
        """Yield this rank's batch of every step from `first` on, in O(1) whatever `first` is.

        Steps are located in blocks, whose size doubles from one step on, so that the first batch comes without delay.
        """
        steps, max_steps = 1, max(1, BLOCK * self.world // self.batch)
        while first < len(self):
            block = range(first, min(first + steps, len(self)))
            positions = [self.positions(step) for step in block]
            located = self.order.locate(np.concatenate(positions))
            ends = np.cumsum([len(part) for part in positions])[:-1]
            for step, source, sequence in zip(block, *(np.split(part, ends) for part in located), strict=True):
                yield RankBatch(step, source, sequence)
            first, steps = block.stop, min(2 * steps, max_steps)

    def prefetched_from_step(self, first: int) -> Iterator[RankBatch]:
        """Yield as `from_step`; while one batch is read, the operating system fetches the next one from disk."""
        previous: list[RankBatch] = []
        for batch in self.from_step(first):
            for index in range(len(self.sources)):
                for sources in (self.sources, self.rejected)[: 1 + self.pairs]:
                    sources[index].prefetch(batch.sequence[batch.source == index])
            yield from previous
            previous = [batch]
        yield from previous

    def read(self, batch: RankBatch) -> Tokens:
        """Return a batch's sequences: [sequences, length], with `~token` for each token that is not predicted."""
        tokens = np.empty(self.shape(batch), np.int64)
        self.read_into(tokens, batch)
        return tokens

    def read_into(self, tokens: Tokens, batch: RankBatch) -> None:
        """Read a batch's sequences into `tokens`, as `read` returns them: [sequences, length]."""
        both = ((tokens[0::PAIR], self.sources), (tokens[1::PAIR], self.rejected))
        for place, sources in both if self.pairs else ((tokens, self.sources),):
            for index, source in enumerate(sources):
                rows = np.flatnonzero(batch.source == index)
                place[rows] = source.read(batch.sequence[rows])

    def shape(self, batch: RankBatch) -> tuple[int, int]:
        """Return the shape of a batch's tokens: (sequences, length)."""
        return len(batch) * (PAIR if self.pairs else 1), self.sources[0].sequences.shape[1]

    def tokens(self, step: int) -> Tokens:
        """Return this rank's sequences of a step: [sequences, length]."""
        return self.read(next(self.from_step(step)))

    def digest(self, step: int, tokens: Tokens) -> int:
        """Return what these sequences, as this rank's batch of a step, add to the stage's data digest."""
        positions = self.positions(step)
        if self.pairs:
            positions = (positions[:, None] * PAIR + np.arange(PAIR)).ravel()
        both = zip(positions.tolist(), tokens, strict=True)
        return add_digests(sequence_digest(position, sequence) for position, sequence in both)


def stage_batches(recipe: Mapping[str, Any], store: Path, rank: int = 0, world: int = 1) -> Batches:
    """Return the batches of a recipe. Raises MissingResourceError if a corpus is not prepared."""
    pairs = "objective" in recipe
    recipe = in_pairs(recipe) if pairs else recipe
    parts = [recipe, recipe.get("exposure"), recipe.get("replay"), *recipe.get("mix", [])]
    corpora = {part["corpus"]: packed_corpus(store, part["corpus"]) for part in parts if part}
    order = stage_order(recipe, {name: corpus.count("train") for name, corpus in corpora.items()})
    return Batches(order, corpora, recipe["batch"], rank, world, pairs)


def recipe_digest(recipe: Mapping[str, Any], store: Path, steps: int) -> int:
    """Return the data digest of a recipe's first `steps` steps, computed from the packed corpora."""
    batches = stage_batches(recipe, store)
    first = islice(batches.prefetched_from_step(0), steps)
    return add_digests(batches.digest(batch.step, batches.read(batch)) for batch in first)
