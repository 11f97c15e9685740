"""The sequences of a packed corpus, read here and there rather than one after another."""

import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.order.permutation import Indices


class Rows:
    """Mapped sequences, of which the system is told which are read next.

    Left to itself it reads 128 kB around each sequence that it has not cached, and each only when it is waited for.
    """

    def __init__(self, sequences: npt.NDArray[np.unsignedinteger[Any]]) -> None:
        self.sequences = sequences
        """[sequences, length]"""
        self.file = None
        # An empty split is no mapping; and not every system can be told.
        mapping: Any = sequences.base
        if isinstance(sequences, np.memmap) and isinstance(mapping, mmap.mmap) and hasattr(os, "posix_fadvise"):
            mapping.madvise(mmap.MADV_RANDOM)
            self.file = open(str(sequences.filename), "rb")  # noqa: SIM115  # for as long as the mapping

    def ask_for(self, numbers: Indices) -> None:
        """Have sequences fetched from disk, all at once, without waiting for them."""
        if self.file is not None:
            size, file = self.sequences.strides[0], self.file.fileno()
            for number in numbers.tolist():
                os.posix_fadvise(file, number * size, size, os.POSIX_FADV_WILLNEED)
