"""Read the sequences of a packed corpus in random order, prefetched from disk."""

import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.order.permutation import Indices


class MappedSequences:
    """Memory-mapped sequences that the operating system can be told to prefetch.

    Without that, it reads 128 kB around each uncached sequence, and only once the sequence is accessed.
    """

    def __init__(self, sequences: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        self.sequences = sequences
        """[sequences, length]"""
        self.file = None
        # An empty split is not a mapping, and some systems lack posix_fadvise.
        mapping: Any = sequences.base
        if isinstance(sequences, np.memmap) and isinstance(mapping, mmap.mmap) and hasattr(os, "posix_fadvise"):
            mapping.madvise(mmap.MADV_RANDOM)
            self.file = open(str(sequences.filename), "rb")  # noqa: SIM115  # open as long as the mapping

    def prefetch(self, indices: Indices) -> None:
        """Ask the operating system to read sequences from disk, all at once; returns without waiting for them."""
        if self.file is not None:
            size, file = self.sequences.strides[0], self.file.fileno()
            for index in indices.tolist():
                os.posix_fadvise(file, index * size, size, os.POSIX_FADV_WILLNEED)
