"""Exact deduplication: which documents have been seen before, in 8 bytes a document (a Python set takes about 80)."""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class HashSet:
    """A set of 64-bit hashes in sorted arrays.

    Arrays of about one size are merged, so a set of n hashes consists of at most log2(n) arrays.
    """

    def __init__(self) -> None:
        self.arrays: list[Hashes] = []

    def add(self, hashes: list[int] | Hashes) -> list[int]:
        """Add hashes; return the indices of those that are new, ascending, each at its first occurrence."""
        values, indices = np.unique(np.array(hashes, np.uint64), return_index=True)
        new = ~self.holds(values)
        if new.any():
            self._keep(values[new])
        return sorted(indices[new].tolist())

    def holds(self, values: Hashes) -> npt.NDArray[np.bool_]:
        """Return which hashes are in the set: [values]."""
        known = np.zeros(len(values), bool)
        for array in self.arrays:
            found = np.searchsorted(array, values)
            known |= array[np.minimum(found, len(array) - 1)] == values
        return known

    def _keep(self, array: Hashes) -> None:
        while self.arrays and len(self.arrays[-1]) <= len(array):
            array = np.concatenate((self.arrays.pop(), array))
            array.sort(kind="stable")
        self.arrays.append(array)
