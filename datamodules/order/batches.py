"""The batches of a stage as one rank sees them: any step's, straight from the packed corpora, without stored state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.packing import PackedCorpus
from retain.datamodules.corpora.prepare import packed_corpus
from retain.datamodules.order.digest import add_digests, sequence_digest
from retain.datamodules.order.mixtures import Order, stage_order
from retain.datamodules.order.permutation import Indices
from retain.datamodules.order.prefetch import Rows

BLOCK = 2**14
"""Sequences that are located at once at most. One at a time a permutation takes 100 times as long for each."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """Which sequences a rank reads in one step."""

    step: int
    source: Indices
    """Of each, the place of its corpus among the order's subsets."""
    sequence: Indices
    """Of each, its number in that corpus."""

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Batches:
    """Ranks take every world-th sequence of a batch, so the batch is the same for any number of ranks.

    The last batch may be smaller, on some ranks even empty.
    """

    order: Order
    corpora: Mapping[str, PackedCorpus]
    batch: int
    """Sequences of one step, over all ranks."""
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return -(-self.order.total // self.batch)

    @cached_property
    def rows(self) -> tuple[Rows, ...]:
        """The sequences of each of the order's subsets' corpora, opened at the first use."""
        return tuple(Rows(self.corpora[subset.corpus].sequences("train")) for subset in self.order.subsets)

    def positions(self, step: int) -> Indices:
        """Which positions of the stage this rank sees in a step."""
        first = step * self.batch
        return np.arange(first + self.rank, min(first + self.batch, self.order.total), self.world, dtype=np.int64)

    def shares(self, first: int) -> Iterator[Share]:
        """This rank's share of every step from `first` on, in O(1) whatever `first` is.

        They are located in blocks, which double from one step on, so that the first is there at once.
        """
        steps, most = 1, max(1, BLOCK * self.world // self.batch)
        while first < len(self):
            block = range(first, min(first + steps, len(self)))
            positions = [self.positions(step) for step in block]
            located = self.order.locate(np.concatenate(positions))
            ends = np.cumsum([len(share) for share in positions])[:-1]
            for step, source, sequence in zip(block, *(np.split(part, ends) for part in located), strict=True):
                yield Share(step, source, sequence)
            first, steps = block.stop, min(2 * steps, most)

    def shares_to_read(self, first: int) -> Iterator[Share]:
        """The same, the system asked to fetch each share from disk while the one before it is read."""
        waiting: list[Share] = []
        for share in self.shares(first):
            for index, rows in enumerate(self.rows):
                rows.ask_for(share.sequence[share.source == index])
            yield from waiting
            waiting = [share]
        yield from waiting

    def read(self, share: Share, tokens: Tokens) -> None:
        """Put a share's sequences into `tokens`: [sequences, length]."""
        for index, rows in enumerate(self.rows):
            here = np.flatnonzero(share.source == index)
            tokens[here] = rows.sequences[share.sequence[here]]

    def shape(self, share: Share) -> tuple[int, int]:
        """Of its tokens: sequences, length."""
        return len(share), self.rows[0].sequences.shape[1]

    def tokens(self, step: int) -> Tokens:
        """This rank's sequences of a step: [sequences, length]."""
        share = next(self.shares(step))
        tokens = np.empty(self.shape(share), np.int64)
        self.read(share, tokens)
        return tokens

    def digest(self, step: int, tokens: Tokens) -> int:
        """The share of the token proof that these sequences add as this rank's part of a step."""
        pairs = zip(self.positions(step).tolist(), tokens, strict=True)
        return add_digests(sequence_digest(position, sequence) for position, sequence in pairs)


def stage_batches(recipe: Mapping[str, Any], store: Path, rank: int = 0, world: int = 1) -> Batches:
    """The batches of a recipe. Raises MissingResourceError where a corpus is not prepared."""
    named = [recipe, recipe.get("exposure"), recipe.get("replay")]
    corpora = {part["corpus"]: packed_corpus(store, part["corpus"]) for part in named if part}
    order = stage_order(recipe, {name: corpus.count("train") for name, corpus in corpora.items()})
    return Batches(order, corpora, recipe["batch"], rank, world)


def recipe_digest(recipe: Mapping[str, Any], store: Path, steps: int) -> int:
    """The token proof that so many steps of a recipe must have, computed from the packed corpora."""
    batches = stage_batches(recipe, store)

    def digests() -> Iterator[int]:
        for share in islice(batches.shares_to_read(0), steps):
            tokens = np.empty(batches.shape(share), np.int64)
            batches.read(share, tokens)
            yield batches.digest(share.step, tokens)

    return add_digests(digests())
