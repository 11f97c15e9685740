"""MinHash signatures of documents, by datasketch: near copies share a band of their signatures."""

import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_WORDS = 5
"""The number of words in a shingle."""
BANDS, ROWS = 16, 8
"""A signature has BANDS bands of ROWS hashes. Documents with a Jaccard similarity s of their shingles share a band with a
probability of 1 − (1 − s^ROWS)^BANDS: 99.99% at 0.9, 95% at 0.8, 61% at 0.7, 6% at 0.5."""
COMPARED = 100_000
"""Characters at the beginning of a document that are compared."""
LONGEST_WORD = 20
"""Mean characters of a word from which on a text counts as written without blanks between words."""

Bands = npt.NDArray[np.uint64]


def shingles(text: str) -> set[bytes]:
    """The shingles of a document: all runs of SHINGLE_WORDS words in lower case; of a shorter document all its words.

    In a text without blanks between words, each character is a word.
    """
    text = text[:COMPARED].lower()
    words: list[str] | str = text.split()
    if len(text) > LONGEST_WORD * len(words):
        words = "".join(words)
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[first : first + SHINGLE_WORDS]).encode(errors="replace") for first in range(last)}


def signature(text: str) -> "MinHash":
    """The MinHash signature of the shingles of a document."""
    made = _empty().copy()
    made.update_batch(shingles(text))
    return made


def bands(text: str) -> Bands:
    """One hash for each band of a document's signature: uint64 [BANDS]; equal bands of one number have equal hashes."""
    rows = signature(text).hashvalues.astype(np.uint64).reshape(BANDS, ROWS)
    mixed = np.arange(BANDS, dtype=np.uint64)
    for column in range(ROWS):
        mixed = (mixed ^ rows[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


@cache
def _empty() -> "MinHash":
    """The signature of nothing; its copies share its permutations."""
    from datasketch import MinHash

    return MinHash(BANDS * ROWS, hashfunc=zlib.crc32, scheme="affine32")
