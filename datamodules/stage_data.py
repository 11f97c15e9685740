"""The data module of a stage: one item a step, this rank's sequences, read straight from the packed corpora."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.mixtures import Order, stage_order
from datamodules.packing import PackedCorpus
from datamodules.prepare import packed_corpus


class StepDataset(Dataset[torch.Tensor]):
    """Item `step` holds this rank's share of that step's batch: int64 [sequences, length].

    Ranks take every world-th sequence of the batch, so the batch is the same for any number of ranks. A last batch may
    be smaller, on some ranks even empty.
    """

    def __init__(
        self, order: Order, corpora: Mapping[str, PackedCorpus], batch: int, rank: int = 0, world: int = 1
    ) -> None:
        self.order, self.batch, self.rank, self.world = order, batch, rank, world
        self.sources = [corpora[subset.corpus].sequences("train") for subset in order.subsets]

    def __len__(self) -> int:
        return -(-self.order.total // self.batch)

    def __getitem__(self, step: int) -> torch.Tensor:
        first = step * self.batch
        positions = np.arange(first + self.rank, min(first + self.batch, self.order.total), self.world, dtype=np.int64)
        source, sequence = self.order.locate(positions)
        tokens = np.empty((len(positions), self.sources[0].shape[1]), np.int64)
        for index, corpus in enumerate(self.sources):
            tokens[source == index] = corpus[sequence[source == index]]
        return torch.from_numpy(tokens)


class StageData(LightningDataModule):
    """Reads a stage's recipe; nothing about the order is kept, so a loader may start at any step."""

    def __init__(self, recipe: Mapping[str, Any], store: Path, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        named = [recipe, recipe.get("exposure"), recipe.get("replay")]
        corpora = {part["corpus"]: packed_corpus(store, part["corpus"]) for part in named if part}
        order = stage_order(recipe, {name: corpus.count("train") for name, corpus in corpora.items()})
        self.steps = StepDataset(order, corpora, recipe["batch"], rank, world)
        self.first_step = 0

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        steps = range(self.first_step, len(self.steps))
        return DataLoader(self.steps, batch_size=None, sampler=steps, pin_memory=torch.cuda.is_available())


def heldout_sequences(store: Path, corpus: str) -> torch.Tensor:
    """The whole held-out split of a corpus, in order: int64 [sequences, length]."""
    return torch.from_numpy(packed_corpus(store, corpus).sequences("heldout").astype(np.int64))
