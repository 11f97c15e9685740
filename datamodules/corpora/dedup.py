"""Which documents have been seen before, at 8 bytes a document (a set of Python's takes about 80)."""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


class HashSet:
    """64-bit hashes in sorted runs; two of about one size are merged, so a set of n is in at most log2(n) runs."""

    def __init__(self) -> None:
        self.runs: list[Hashes] = []

    def add(self, hashes: list[int]) -> list[int]:
        """Add hashes; the places of those that are new, each at its first place, in order."""
        values, places = np.unique(np.array(hashes, np.uint64), return_index=True)
        new = np.ones(len(values), bool)
        for run in self.runs:
            found = np.searchsorted(run, values)
            new &= run[np.minimum(found, len(run) - 1)] != values
        if new.any():
            self._keep(values[new])
        return sorted(places[new].tolist())

    def _keep(self, run: Hashes) -> None:
        while self.runs and len(self.runs[-1]) <= len(run):
            run = np.concatenate((self.runs.pop(), run))
            run.sort(kind="stable")
        self.runs.append(run)
