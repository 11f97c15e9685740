"""Measure how similar two packed corpora are, on samples of bounded size that are spread evenly over each corpus."""

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.near.minhash import signature
from retain.datamodules.corpora.overlap.duplicates import near_duplicates
from retain.datamodules.corpora.overlap.ngrams import LARGEST_VOCABULARY, NgramModel, Trigrams, divergence, trigrams
from retain.datamodules.corpora.prepared import PackedCorpus
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.errors import StudyError
from retain.sweeps.tree.overlap import Overlap

if TYPE_CHECKING:
    from datasketch import MinHash

TRAINING_TOKENS, HELDOUT_TOKENS = 1_000_000, 200_000
"""The most tokens of a split whose n-grams are counted."""
DOCUMENT_TOKENS = 20_000_000
"""The most training tokens, from the beginning of a corpus, whose documents are looked for in the other corpus."""
NEAR_DOCUMENTS = 5_000
"""The most documents of a corpus that near duplicates are looked for among."""

Sequences = npt.NDArray[np.unsignedinteger[Any]]


class CorpusSample:
    """The parts of a packed corpus that are compared with other corpora, read when they are needed."""

    def __init__(self, packed: PackedCorpus, tokenizer: Tokenizer) -> None:
        self.packed, self.tokenizer = packed, tokenizer

    def trigrams(self, split: str, most: int) -> Trigrams:
        """The trigrams of up to `most` sequences of a split, spread evenly over it."""
        rows = spread(self.packed.count(split), most)
        return trigrams(self.packed.sequences(split)[rows], self.tokenizer.vocabulary, self.tokenizer.end_id)

    @property
    def hashes(self) -> set[bytes]:
        """A digest of each document at the beginning of the training split."""
        return self._documents[0]

    @property
    def signatures(self) -> "list[MinHash]":
        """The MinHash signatures of up to NEAR_DOCUMENTS of them."""
        return self._documents[1]

    @cached_property
    def _documents(self) -> "tuple[set[bytes], list[MinHash]]":
        documents = split_documents(self._start(), self.tokenizer.end_id)
        hashes = {hashlib.blake2b(document, digest_size=16).digest() for document in documents}
        chosen = [documents[row] for row in spread(len(documents), NEAR_DOCUMENTS)]
        dtype = np.dtype(self.packed.manifest["dtype"])
        texts = self.tokenizer.decode([np.frombuffer(document, dtype).tolist() for document in chosen])
        return hashes, [signature(text) for text in texts]

    def _start(self) -> Sequences:
        count, length = self.packed.shape("train")
        return self.packed.sequences("train")[: min(count, -(-DOCUMENT_TOKENS // length))].ravel()


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Up to `most` numbers below `count`, evenly spaced and ascending."""
    chosen = min(count, most)
    return np.arange(chosen, dtype=np.int64) * count // max(chosen, 1)


def split_documents(tokens: Sequences, end: int) -> list[bytes]:
    """The whole documents in a stream of tokens, each as the bytes of its tokens without its end of text.

    What follows the last end of text is left out.
    """
    ends = np.flatnonzero(tokens == end).tolist()
    begins = [0, *(place + 1 for place in ends)]
    return [tokens[begin:last].tobytes() for begin, last in zip(begins, ends, strict=False) if last > begin]


def overlap_of(one: CorpusSample, other: CorpusSample) -> Overlap:
    """How similar two corpora are; the same number of training tokens is compared of both.

    They must have one tokeniser and one sequence length.

    Raises StudyError if the vocabulary is too large, or a corpus has no training sequence.
    """
    both = (one, other)
    (count, length), (theirs, _) = (sample.packed.shape("train") for sample in both)
    if one.tokenizer.vocabulary > LARGEST_VOCABULARY:
        raise StudyError(
            f"a vocabulary of {one.tokenizer.vocabulary:,} is too large to compare n-grams; choose another tokeniser"
        )
    sequences = min(count, theirs, -(-TRAINING_TOKENS // length))
    if not sequences or length < 3:
        raise StudyError("a corpus without three training tokens in a row cannot be compared; give it more documents")
    trained = [sample.trigrams("train", sequences) for sample in both]
    held = [sample.trigrams("heldout", -(-HELDOUT_TOKENS // length)) for sample in both]
    models = [NgramModel(part) for part in trained]
    entropies = [[model.cross_entropy(text) if len(text.token) else None for model in models] for text in held]
    near = near_duplicates(one.signatures, other.signatures)
    return Overlap(
        corpora=[sample.packed.fingerprint for sample in both],
        tokens=sequences * length,
        divergences=[divergence(trained[0], trained[1], order) for order in (1, 2, 3)],
        heldout_tokens=[len(text.token) for text in held],
        cross_entropies=entropies,
        documents=[len(sample.hashes) for sample in both],
        shared=len(one.hashes & other.hashes),
        compared=[len(sample.signatures) for sample in both],
        near=list(near),
    )
