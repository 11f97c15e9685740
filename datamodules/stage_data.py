"""The data module of a stage: one item a step, and the token proof of what was consumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import Batches, stage_batches
from datamodules.digest import add_digests
from datamodules.prepare import packed_corpus


class StepDataset(Dataset[torch.Tensor]):
    """Item `step` holds this rank's share of that step's batch: int64 [sequences, length]."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> torch.Tensor:
        return torch.from_numpy(self.batches.tokens(step))


class StageData(LightningDataModule):
    """Reads a stage's recipe; nothing about the order is kept, so a loader may start at any step."""

    def __init__(self, recipe: Mapping[str, Any], store: Path, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.batches = stage_batches(recipe, store, rank, world)
        self.next_step = 0
        """The step that the next batch belongs to."""
        self.digest = 0
        """Of what this rank has consumed."""

    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        steps = range(self.next_step, len(self.batches))
        pinned = torch.cuda.is_available()
        return DataLoader(StepDataset(self.batches), batch_size=None, sampler=steps, pin_memory=pinned)

    def on_before_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        """Lightning calls it once for each batch, right before its step."""
        self.digest = add_digests((self.digest, self.batches.digest(self.next_step, batch.numpy())))
        self.next_step += 1
        return batch


def heldout_sequences(store: Path, corpus: str) -> torch.Tensor:
    """The whole held-out split of a corpus, in order: int64 [sequences, length]."""
    return torch.from_numpy(packed_corpus(store, corpus).sequences("heldout").astype(np.int64))
