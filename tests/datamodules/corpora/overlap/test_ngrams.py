"""n-grams of tokens: their divergence and the loss of a small model, against values computed by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from retain.datamodules.corpora.near.minhash import shingles, signature
from retain.datamodules.corpora.overlap.duplicates import near_duplicates
from retain.datamodules.corpora.overlap.ngrams import NgramModel, Trigrams, divergence, trigrams

END, VOCABULARY = 0, 12
RANDOM = np.random.default_rng(4).integers(0, VOCABULARY, (40, 16)).astype(np.uint16)


def of(*sequences: list[int]) -> Trigrams:
    return trigrams(np.array(sequences, np.uint16), VOCABULARY, END)


def test_a_document_begins_with_ends_of_text_and_not_with_the_document_before() -> None:
    found = of([1, 2, 3, END, 5, 6])
    assert list(zip(found.second_last.tolist(), found.last.tolist(), found.token.tolist(), strict=True)) == [
        (1, 2, 3),
        (2, 3, END),
        (END, END, 5),
        (END, 5, 6),
    ]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equal_texts_have_divergence_0_and_texts_without_a_common_token_ln_2(order: int) -> None:
    one, other = of([1, 2, 3, 1, END, 2, 3, 1]), of([4, 5, 6, 5, END, 6, 4, 5])
    assert divergence(one, one, order) == 0
    assert divergence(one, other, order) == pytest.approx(math.log(2), rel=1e-12)
    assert divergence(one, other, order) == divergence(other, one, order)


def test_the_divergence_is_that_of_the_definition() -> None:
    one, other = of([9, 9, 1, 1, 2, 3]), of([9, 9, 1, 2, 2, 2])
    p, q = np.array([2, 1, 1]) / 4, np.array([1, 3, 0]) / 4
    m = (p + q) / 2
    exact = (np.sum(p * np.log(p / m)) + np.sum(q[:2] * np.log(q[:2] / m[:2]))) / 2
    assert divergence(one, other, 1) == pytest.approx(exact, rel=1e-12)


def test_the_model_is_witten_bell() -> None:
    """The same model, token by token with counters."""
    train, text = trigrams(RANDOM[:30], VOCABULARY, END), trigrams(RANDOM[30:], VOCABULARY, END)

    def grams(part: Trigrams) -> list[tuple[int, int, int]]:
        return list(zip(part.second_last.tolist(), part.last.tolist(), part.token.tolist(), strict=True))

    counts = {order: Counter(gram[3 - order :] for gram in grams(train)) for order in (1, 2, 3)}

    def probability(gram: tuple[int, ...]) -> float:
        lower = probability(gram[1:]) if len(gram) > 1 else 1 / VOCABULARY
        after = {name: count for name, count in counts[len(gram)].items() if name[:-1] == gram[:-1]}
        if not after:
            return lower
        return (after.get(gram, 0) + len(after) * lower) / (sum(after.values()) + len(after))

    exact = -np.mean([math.log(probability(gram)) for gram in grams(text)])
    assert NgramModel(train).cross_entropy(text) == pytest.approx(exact, rel=1e-12)
    every = [probability((RANDOM[0, 0], RANDOM[0, 1], token)) for token in range(VOCABULARY)]
    assert sum(every) == pytest.approx(1)


def test_a_document_with_one_word_in_a_hundred_changed_is_a_near_duplicate_and_another_is_not() -> None:
    words = [f"word{number}" for number in range(200)]
    changed = [*words[:90], "other", *words[91:]]
    other = [f"else{number}" for number in range(200)]
    signatures = [signature(" ".join(text)) for text in (words, changed, other)]
    assert near_duplicates(signatures[:1], signatures[1:]) == (1, 1)
    assert near_duplicates(signatures[2:], signatures[:2]) == (0, 0)
    assert near_duplicates(signatures[:1], signatures[:2]) == (1, 2)
    assert signatures[0].jaccard(signature(" ".join(words).upper())) == 1


def test_short_documents_have_one_shingle() -> None:
    assert shingles("One two") == {b"one two"}
    assert shingles("a b c d e f") == {b"a b c d e", b"b c d e f"}
