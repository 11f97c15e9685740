"""Read the sequences of a packed corpus in random order, prefetched from disk."""

import mmap
import os
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from retain.datamodules.order.permutation import Indices


class MappedSequences:
    """Memory-mapped sequences that the operating system can be told to prefetch, with their mask if they have one.

    Without that, it reads 128 kB around each uncached sequence, and only once the sequence is accessed.
    """

    def __init__(
        self, sequences: npt.NDArray[np.unsignedinteger[Any]], mask: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self.sequences, self.mask = sequences, mask
        """[sequences, length], and the mask's bits as in `PackedCorpus.mask`."""
        mapped: list[npt.NDArray[Any]] = [sequences] if mask is None else [sequences, mask]
        self.files = [(rows.strides[0], file) for rows in mapped if (file := _prefetched_file(rows))]

    def read(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return sequences, [indices, length], with the complement `~token` for each token that is not predicted."""
        tokens = self.sequences[indices].astype(np.int64)
        if self.mask is not None:
            predicted = np.unpackbits(self.mask[indices], axis=1, count=tokens.shape[1])
            tokens ^= predicted.astype(np.int64) - 1  # x ^ -1 is ~x
        return tokens

    def prefetch(self, indices: Indices) -> None:
        """Ask the operating system to read sequences from disk, all at once; returns without waiting for them."""
        for size, file in self.files:
            for index in indices.tolist():
                os.posix_fadvise(file.fileno(), index * size, size, os.POSIX_FADV_WILLNEED)


def _prefetched_file(rows: npt.NDArray[Any]) -> BinaryIO | None:
    """The file of a mapping of rows that are read in random order; None if the system takes no advice on it."""
    # An empty split is not a mapping, and some systems lack posix_fadvise.
    mapping: Any = rows.base
    if isinstance(rows, np.memmap) and isinstance(mapping, mmap.mmap) and hasattr(os, "posix_fadvise"):
        mapping.madvise(mmap.MADV_RANDOM)
        return open(str(rows.filename), "rb")  # open as long as the mapping
    return None
