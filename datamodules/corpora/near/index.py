"""An index of documents by the bands of their signatures: 8 bytes a band, with no document kept."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.near.minhash import Bands


class NearIndex:
    """A set of documents that finds near copies of those in it."""

    def __init__(self) -> None:
        self.hashes = HashSet()

    def add(self, documents: Sequence[Bands]) -> None:
        """Add documents by their bands."""
        if documents:
            self.hashes.add(np.concatenate(documents).tolist())

    def near(self, documents: Sequence[Bands]) -> npt.NDArray[np.bool_]:
        """Return which documents are near copies of one in the index: [documents]."""
        if not documents:
            return np.zeros(0, bool)
        stacked = np.stack(documents)
        known = self.hashes.holds(stacked.ravel()).reshape(stacked.shape)
        return np.asarray(known.any(axis=1))

    def add_distinct(self, documents: Sequence[Bands]) -> npt.NDArray[np.bool_]:
        """Return which documents are near copies of one in the index or of an earlier one here; add the others."""
        near, kept, added = self.near(documents), set[int](), list[Bands]()
        for number, bands in enumerate(documents):
            if not near[number]:
                hashes = set(bands.tolist())
                near[number] = bool(kept & hashes)
                if not near[number]:
                    kept |= hashes
                    added.append(bands)
        self.add(added)
        return near
