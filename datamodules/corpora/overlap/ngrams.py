"""n-grams of packed sequences: their divergence, and a small model of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int64]
"""n-grams as numbers: the tokens are the digits, base the size of the vocabulary."""
LARGEST_VOCABULARY = 2**21
"""The largest vocabulary of which three tokens fit in 63 bits."""


@dataclass(frozen=True)
class Trigrams:
    """Each token with the two before it; a document begins with two ends of text. All arrays: [tokens]."""

    second_last: Tokens
    last: Tokens
    token: Tokens
    vocabulary: int
    end: int
    """The token that ends a document."""

    def codes(self, order: int) -> Codes:
        """The n-grams of an order (1 to 3) as numbers: [tokens]."""
        codes = self.token
        if order > 1:
            codes = codes + self.vocabulary * self.last
        return codes + self.vocabulary**2 * self.second_last if order > 2 else codes


def trigrams(sequences: npt.NDArray[np.integer[Any]], vocabulary: int, end: int) -> Trigrams:
    """The trigrams in sequences, [sequences, length]; the first two tokens of each have too few before them."""
    tokens = sequences.astype(np.int64)
    before, last, token = (part.ravel() for part in (tokens[:, :-2], tokens[:, 1:-1], tokens[:, 2:]))
    return Trigrams(np.where(last == end, end, before), last, token, vocabulary, end)


def divergence(one: Trigrams, other: Trigrams, order: int) -> float:
    """The Jensen-Shannon divergence of n-grams in nats: 0 if they are alike, ln 2 if none is in both.

    n-grams that end with the end of a document do not count.
    """
    (names, counts), (others, theirs) = (
        np.unique(part.codes(order)[part.token != part.end], return_counts=True) for part in (one, other)
    )
    every = np.union1d(names, others)
    p, q = np.zeros(len(every)), np.zeros(len(every))
    p[np.searchsorted(every, names)] = counts / counts.sum()
    q[np.searchsorted(every, others)] = theirs / theirs.sum()
    middle = (p + q) / 2
    return max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _relative_entropy(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    there = p > 0
    return float(np.sum(p[there] * np.log(p[there] / q[there])))


@dataclass(frozen=True)
class _Order:
    """The counts of the n-grams of one order."""

    names: Codes
    """The n-grams, ascending."""
    counts: Tokens
    contexts: Codes
    """What comes before the last token of each n-gram, ascending."""
    totals: Tokens
    """How often each context occurs."""
    types: Tokens
    """How many different tokens follow each context."""


class NgramModel:
    """A trigram model with Witten-Bell interpolation down to a uniform distribution: it has nothing to be tuned."""

    def __init__(self, trained: Trigrams) -> None:
        self.vocabulary = trained.vocabulary
        self.orders = [_counted(trained.codes(order), trained.vocabulary) for order in (1, 2, 3)]

    def cross_entropy(self, text: Trigrams) -> float:
        """The mean loss of the model on the tokens of a text, nats per token."""
        probability = np.full(len(text.token), 1 / self.vocabulary)
        for number, order in enumerate(self.orders, 1):
            codes = text.codes(number)
            counts = _looked_up(order.names, order.counts, codes)
            totals = _looked_up(order.contexts, order.totals, codes // self.vocabulary)
            types = _looked_up(order.contexts, order.types, codes // self.vocabulary)
            # A context that was never seen says nothing: the lower order stays as it is.
            mixed = (counts + types * probability) / np.maximum(totals + types, 1)
            probability = np.where(totals > 0, mixed, probability)
        return float(-np.mean(np.log(probability)))


def _counted(codes: Codes, vocabulary: int) -> _Order:
    names, counts = np.unique(codes, return_counts=True)
    contexts, first, types = np.unique(names // vocabulary, return_index=True, return_counts=True)
    return _Order(names, counts, contexts, np.add.reduceat(counts, first), types)


def _looked_up(names: Codes, values: Tokens, wanted: Codes) -> Tokens:
    """The value of each wanted name; 0 for names that are missing."""
    places = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    return np.where(names[places] == wanted, values[places], 0)
