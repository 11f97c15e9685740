"""Estimate how many documents of a corpus have a near copy, from a sample of bounded size."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import numpy as np

from retain.datamodules.corpora.documents import document_hash
from retain.datamodules.corpora.near.minhash import bands
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, text_of

MOST = 1000
"""Documents in the sample."""
KEPT = 20_000
"""Characters that are kept and compared of a document in the sample."""
BEGINNING = 1000
"""Bytes of a document that decide whether it is in the sample."""
WINDOW = 32
"""Bytes that are hashed together."""
PRIME, MIXING = 0x100000001B3, 0x9E3779B97F4A7C15


class NearSample:
    """A sample in which a document and its near copies are together, or not at all.

    Documents are ordered by a MinHash of the runs of WINDOW bytes in their beginnings, then by their hash, and the first MOST
    are the sample. Near copies have the same MinHash about as often as they are similar, so the estimate is a little low.
    Neither the order in which documents are read nor chance matters.
    """

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.below = 2**128

    def add(self, text: str) -> None:
        """Look at a document, which takes microseconds."""
        order = _order(text) << 64
        if order < self.below and (place := order | document_hash(text)) < self.below:
            self.texts[place] = text[:KEPT]
            if len(self.texts) >= 2 * MOST:
                self._cut()

    def count(self, tally: Tally) -> None:
        """Enter the size of the sample, and its documents with a near copy, into a tally."""
        self._cut()
        compared = [bands(text).tolist() for text in self.texts.values()]
        times = Counter(chain.from_iterable(compared))
        near = sum(any(times[band] > 1 for band in one) for one in compared)
        tally.counts.update(near=near, sampled=len(compared))

    def _cut(self) -> None:
        if len(self.texts) > MOST:
            places = sorted(self.texts)
            self.below = places[MOST]
            self.texts = {place: self.texts[place] for place in places[:MOST]}


def sampled(documents: Iterator[Document], sample: NearSample) -> Iterator[Document]:
    """Yield the documents, and show each to the sample."""
    for document in documents:
        sample.add(text_of(document))
        yield document


def _order(text: str) -> int:
    """The MinHash of the beginning of a text, over runs of WINDOW bytes."""
    found = np.frombuffer(text[:BEGINNING].encode(errors="replace")[:BEGINNING].ljust(WINDOW), np.uint8).astype(
        np.uint64
    )
    factor, width = PRIME, 1
    while width < WINDOW:
        found = found[:-width] * np.uint64(factor) + found[width:]
        factor, width = factor * factor % 2**64, 2 * width
    found ^= found >> np.uint64(31)
    found *= np.uint64(MIXING)
    return int((found ^ (found >> np.uint64(29))).min())
