"""The data digest: which sequences a stage has consumed, and at which positions.

It is the sum, modulo 2^128, of a BLAKE2b hash of each position and its tokens. Ranks add up their own sequences in any
order; the position inside each hash fixes the order of the stage.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

MODULUS = 2**128


def sequence_digest(position: int, tokens: npt.NDArray[np.int64]) -> int:
    """Return the digest of one sequence at one position of a stage, below 2^128."""
    content = position.to_bytes(8, "little") + np.ascontiguousarray(tokens, "<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=16).digest(), "little")


def add_digests(digests: Iterable[int]) -> int:
    """Return the digest of several parts of a stage together."""
    return sum(digests) % MODULUS


def as_text(digest: int) -> str:
    """Return a digest as 32 hexadecimal digits."""
    return f"{digest:032x}"
