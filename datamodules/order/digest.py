"""The token proof: a digest over which sequence a stage consumed at which position.

It is the sum, modulo 2^128, of a BLAKE2b hash of each position with its tokens. A sum needs no order of its own, so ranks
add up their shares independently; the position inside the hash fixes the order.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

MODULUS = 2**128


def sequence_digest(position: int, tokens: npt.NDArray[np.int64]) -> int:
    """Of one sequence at one position of a stage: below 2^128."""
    content = position.to_bytes(8, "little") + np.ascontiguousarray(tokens, "<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=16).digest(), "little")


def add_digests(digests: Iterable[int]) -> int:
    """The digest of several shares together."""
    return sum(digests) % MODULUS


def as_text(digest: int) -> str:
    """32 hexadecimal digits."""
    return f"{digest:032x}"
