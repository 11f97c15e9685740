"""The batches of a stage as one rank sees them: any step's, straight from the packed corpora, without stored state."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.digest import add_digests, sequence_digest
from datamodules.mixtures import Order, stage_order
from datamodules.packing import PackedCorpus
from datamodules.permutation import Indices
from datamodules.prepare import packed_corpus

Tokens = npt.NDArray[np.int64]


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

    def positions(self, step: int) -> Indices:
        """Which positions of the stage this rank sees in a step."""
        first = step * self.batch
        return np.arange(first + self.rank, min(first + self.batch, self.order.total), self.world, dtype=np.int64)

    def tokens(self, step: int) -> Tokens:
        """This rank's sequences of a step: [sequences, length]."""
        source, sequence = self.order.locate(self.positions(step))
        packed = [self.corpora[subset.corpus].sequences("train") for subset in self.order.subsets]
        tokens = np.empty((len(source), packed[0].shape[1]), np.int64)
        for index, sequences in enumerate(packed):
            tokens[source == index] = sequences[sequence[source == index]]
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
    return add_digests(batches.digest(step, batches.tokens(step)) for step in range(steps))
