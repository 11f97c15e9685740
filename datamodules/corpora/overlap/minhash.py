"""MinHash signatures of documents: near duplicates are found without comparing all pairs."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_WORDS = 5
"""The number of words in a shingle."""
PERMUTATIONS = 128
"""The number of hashes in a signature: the standard error of a similarity of 0.8 is 0.035."""
SIMILARITY = 0.8
"""The Jaccard similarity of shingles from which on documents are near duplicates."""

CANDIDATES = 0.7
"""The similarity that the index is made for, lower so that it misses few."""


def shingles(text: str) -> set[bytes]:
    """The shingles of a document: all runs of SHINGLE_WORDS words in lower case; of a shorter document all its words."""
    words = text.lower().split()
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[first : first + SHINGLE_WORDS]).encode(errors="replace") for first in range(last)}


def signature(text: str) -> "MinHash":
    """The MinHash signature of the shingles of a document."""
    made = _empty().copy()
    made.update_batch(list(shingles(text)))
    return made


@cache
def _empty() -> "MinHash":
    """The signature of nothing; its copies share its permutations."""
    from datasketch import MinHash

    return MinHash(PERMUTATIONS)


def near_duplicates(those: Sequence["MinHash"], these: Sequence["MinHash"]) -> tuple[int, int]:
    """How many of those documents have a near duplicate among these, and how many of these among those."""
    from datasketch import MinHashLSH

    index = MinHashLSH(CANDIDATES, PERMUTATIONS)
    for number, one in enumerate(these):
        index.insert(number, one)
    found, partners = 0, set[int]()
    for one in those:
        near = {number for number in index.query(one) if one.jaccard(these[number]) >= SIMILARITY}
        found += bool(near)
        partners |= near
    return found, len(partners)
