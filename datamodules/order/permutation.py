"""A seeded permutation of range(n) that is computed, not stored: O(1) an index, and no memory whatever n is.

A balanced Feistel network permutes the smallest power of four that is at least n. An index that lands outside range(n) is
permuted again until it lands inside (cycle walking: fewer than four times on average). At 20B tokens in sequences of 1,024
a stored shuffle would take 78 MB a corpus; this takes about 1 µs a sequence, in batches of a few hundred.
"""

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 12
U64 = np.uint64
Indices = npt.NDArray[np.int64]


def derive_seed(*parts: int | str) -> int:
    """Return an independent 64-bit seed for a purpose, e.g. derive_seed(seed, "order", epoch)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(indices: Indices, size: int, seed: int) -> Indices:
    """Return the images of indices under a seeded permutation of range(size), in the shape of `indices`.

    Raises IndexError if an index is outside range(size).
    """
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise IndexError(f"index outside range({size})")
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = [derive_seed(seed, "round", number) for number in range(ROUNDS)]
    result = _feistel(indices.astype(U64), half, keys)
    while (outside := result >= U64(size)).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half: int, keys: list[int]) -> npt.NDArray[np.uint64]:
    shift, mask = U64(half), U64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ U64(key)) & mask)
    return (left << shift) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); multiplication wraps around."""
    values = (values ^ (values >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> U64(27))) * U64(0x94D049BB133111EB)
    return values ^ (values >> U64(31))
