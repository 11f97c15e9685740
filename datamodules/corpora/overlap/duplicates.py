"""Near duplicates between two samples of documents, found without comparing all pairs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retain.datamodules.corpora.near.minhash import BANDS, ROWS

if TYPE_CHECKING:
    from datasketch import MinHash

SIMILARITY = 0.8
"""The Jaccard similarity of shingles from which on documents are near duplicates. Its standard error here is 0.035."""
CANDIDATES = 0.7
"""The similarity that the index is made for, lower so that it misses few."""


def near_duplicates(first: Sequence["MinHash"], second: Sequence["MinHash"]) -> tuple[int, int]:
    """How many documents of each sample have a near duplicate in the other.

    The documents are given by their signatures; see `near.minhash`.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(CANDIDATES, BANDS * ROWS)
    for number, one in enumerate(second):
        index.insert(number, one)
    found, partners = 0, set[int]()
    for one in first:
        near = {number for number in index.query(one) if one.jaccard(second[number]) >= SIMILARITY}
        found += bool(near)
        partners |= near
    return found, len(partners)
