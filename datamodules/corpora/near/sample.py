"""Estimate how many documents of a corpus have a near copy, from a sample of bounded size."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, chain

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
TOGETHER = 64
"""Documents that are looked at together, which is faster."""
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
        self.waiting: list[str] = []

    def add(self, text: str) -> None:
        """Look at a document, which takes microseconds."""
        self.waiting.append(text)
        if len(self.waiting) == TOGETHER:
            self._look()

    def count(self, tally: Tally) -> None:
        """Enter the size of the sample, and its documents with a near copy, into a tally."""
        self._look()
        self._cut()
        compared = [bands(text).tolist() for text in self.texts.values()]
        times = Counter(chain.from_iterable(compared))
        near = sum(any(times[band] > 1 for band in one) for one in compared)
        tally.counts.update(near=near, sampled=len(compared))

    def _look(self) -> None:
        """Take those of the waiting documents that belong into the sample."""
        for order, text in zip(_orders(self.waiting), self.waiting, strict=True):
            if order << 64 < self.below and (place := order << 64 | document_hash(text)) < self.below:
                self.texts[place] = text[:KEPT]
        self.waiting.clear()
        if len(self.texts) >= 2 * MOST:
            self._cut()

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


def _orders(texts: list[str]) -> list[int]:
    """The MinHash of the beginning of each text, over runs of WINDOW bytes."""
    beginnings = [text[:BEGINNING].encode(errors="replace")[:BEGINNING].ljust(WINDOW) for text in texts]
    hashes = np.frombuffer(b"".join(beginnings), np.uint8).astype(np.uint64)
    factor, width = PRIME, 1
    while width < WINDOW and texts:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        factor, width = factor * factor % 2**64, 2 * width
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(MIXING)
    hashes ^= hashes >> np.uint64(29)
    ends = list(accumulate(map(len, beginnings)))
    return [int(hashes[end - len(one) : end - WINDOW + 1].min()) for one, end in zip(beginnings, ends, strict=True)]
