"""The data module of a stage: one batch a step, read ahead, and the data digest of the batches consumed."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule

from retain.datamodules.corpora.prepared import PackedCorpus, packed_corpus
from retain.datamodules.corpora.values.labels import Labels
from retain.datamodules.order.batches import Batches, stage_batches
from retain.datamodules.order.digest import add_digests
from retain.datamodules.order.mixtures import Subset
from retain.datamodules.order.permutation import derive_seed, permute
from retain.datamodules.order.prefetch import MappedSequences
from retain.datamodules.order.read_ahead import read_ahead
from retain.sweeps.tree.heldout_splits import TUNE
from retain.sweeps.tree.recipes.preference import PAIR

STEPS_AHEAD = 3
"""Steps whose batches are read in advance."""


class PairBatch(NamedTuple):
    """A batch of pairs."""

    sequences: torch.Tensor
    """int64 [2 · pairs, length], each chosen response before the rejected one."""
    reference: torch.Tensor
    """The reference log-probabilities of the sequences: fp64 [2 · pairs]."""


@dataclass(frozen=True)
class StepLoader:
    """Yields this rank's batch of each step from `first` on: int64 [sequences, length], in pinned memory for a GPU.

    A token that is not predicted is its complement, `~token`. With a reference, batches are `PairBatch`.
    """

    batches: Batches
    first: int
    reference: torch.Tensor | None = None
    """The reference log-probabilities of all training pairs: fp64 [pairs, 2]."""

    def __len__(self) -> int:
        # Lightning skips a stage without batches, also one whose last step is trained, and which is yet to be evaluated.
        return max(1, len(self.batches) - self.first)

    def __iter__(self) -> Iterator[torch.Tensor | PairBatch]:
        return read_ahead(self._read(), STEPS_AHEAD)

    def _read(self) -> Iterator[torch.Tensor | PairBatch]:
        # A stage on a GPU has initialised CUDA by now. A stage on the CPU must not do so by pinning memory.
        pinned = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        for batch in self.batches.prefetched_from_step(self.first):
            tokens = torch.empty(self.batches.shape(batch), dtype=torch.int64, pin_memory=pinned)
            self.batches.read_into(tokens.numpy(), batch)
            if self.reference is None:
                yield tokens
            else:
                yield PairBatch(tokens, self.reference[torch.from_numpy(batch.sequence)].flatten())


class StageData(LightningDataModule):
    """The training data of a stage's recipe. The order is computed, not stored, so a loader may start at any step.

    reference: as in `StepLoader`, for a stage with pairs.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        store: Path,
        rank: int = 0,
        world: int = 1,
        reference: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.batches = stage_batches(recipe, store, rank, world)
        self.reference = reference
        self.next_step = 0
        """The step of the next batch."""
        self._hashed = 0
        self._hashing: Future[int] | None = None
        self._thread = ThreadPoolExecutor(1, "data-digest")

    @property
    def digest(self) -> int:
        """The data digest of the batches that this rank has consumed."""
        if self._hashing is not None:
            self._hashed = add_digests((self._hashed, self._hashing.result()))
            self._hashing = None
        return self._hashed

    @digest.setter
    def digest(self, digest: int) -> None:
        self._hashed, self._hashing = digest, None

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self.batches, self.next_step, self.reference)

    def on_before_batch_transfer(
        self, batch: torch.Tensor | PairBatch, dataloader_idx: int
    ) -> torch.Tensor | PairBatch:
        """Count a batch as consumed and hash it in the background. Lightning calls this once, right before each step."""
        self.digest = self.digest  # waits for the previous batch's hash
        sequences = batch.sequences if isinstance(batch, PairBatch) else batch
        self._hashing = self._thread.submit(self.batches.digest, self.next_step, sequences.numpy())
        self.next_step += 1
        return batch


def heldout_sequences(store: Path, corpus: str, half: str | None = None) -> torch.Tensor:
    """Return the held-out split of a corpus, in order: int64 [sequences, length], as batches have their tokens.

    half: only the sequences of this half, tune or report, as `tune_sequences` divides them.
    """
    packed = packed_corpus(store, corpus)
    rows = _heldout_rows(packed.count("heldout"), half)
    return torch.from_numpy(MappedSequences(packed.sequences("heldout"), packed.mask("heldout")).read(rows))


def heldout_pairs(store: Path, corpus: str, half: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the held-out pairs of a corpus, in order, as `read_pairs` has them, and their numbers in the split: int64 [pairs].

    half: as in `heldout_sequences`.
    """
    packed = packed_corpus(store, corpus)
    rows = _heldout_rows(packed.count("heldout"), half)
    return read_pairs(packed, "heldout", rows), torch.from_numpy(rows)


def read_pairs(packed: PackedCorpus, split: str, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return pairs of a split by their numbers: int64 [2 · pairs, length], each chosen response before the rejected one."""
    both = [
        MappedSequences(packed.sequences(split, rejected), packed.mask(split, rejected)).read(rows)
        for rejected in (False, True)
    ]
    return torch.from_numpy(np.stack(both, axis=1).reshape(PAIR * len(rows), -1))


def heldout_labels(store: Path, corpus: str, labels: Labels, half: str | None = None) -> torch.Tensor:
    """Return the number of the value of each token of `heldout_sequences`: uint8 [sequences, length]."""
    count, length = packed_corpus(store, corpus).shape("heldout")
    return torch.from_numpy(labels.of_tokens(count, length)[_heldout_rows(count, half)])


def _heldout_rows(count: int, half: str | None) -> npt.NDArray[np.int64]:
    rows = np.arange(count)
    return rows if half is None else rows[tune_sequences(count) == (half == TUNE)]


def first_sequences(store: Path, recipe: Mapping[str, Any]) -> torch.Tensor:
    """Return the first `sequences` training sequences of the shuffle of a recipe's corpus, after its `first` ones.

    int64 [sequences, length], as batches have their tokens. Raises MissingResourceError if the corpus is not prepared.
    """
    packed, count = packed_corpus(store, recipe["corpus"]), recipe["sequences"]
    subset = Subset(recipe["corpus"], packed.count("train"), count, recipe.get("first", 0), recipe["subset_seed"])
    rows = subset.sequences(np.arange(count))
    return torch.from_numpy(MappedSequences(packed.sequences("train"), packed.mask("train")).read(rows))


def tune_sequences(count: int) -> npt.NDArray[np.bool_]:
    """Return which of `count` held-out sequences are in the tune half: [count].

    The tune half is the sequences that one fixed permutation maps below count // 2: the same for every study, stage and
    seed. The other half, which has one more if the count is odd, is reported.
    """
    return permute(np.arange(count), count, derive_seed("tune split")) < count // 2
