from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import is_heldout
from retain.datamodules.corpora.packing import Division, pack
from retain.datamodules.corpora.prepared import SPLITS, PackedCorpus, open_packed, packed_problem
from retain.datamodules.corpora.tokenizer import Tokenizer, train_tokenizer
from tests.studies import documents_of

LENGTH = 16
DOCUMENTS = documents_of("general", 300)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(documents_of("general", 100), 320)


@pytest.fixture
def corpus(tokenizer: Tokenizer, tmp_path: Path) -> PackedCorpus:
    return packed(tokenizer, DOCUMENTS, tmp_path / "corpus")


def packed(
    tokenizer: Tokenizer, documents: list[str], folder: Path, heldout: float = 0.2, tokens: int | None = None
) -> PackedCorpus:
    return pack(documents, tokenizer, LENGTH, Division(heldout, heldout), tokens, folder, lambda *_: None)


def documents_in(corpus: PackedCorpus, tokenizer: Tokenizer, split: str) -> list[str]:
    """Decode the documents of a split; the last one may be cut off."""
    numbers = corpus.sequences(split).flatten().tolist()
    return tokenizer.core.decode(numbers, skip_special_tokens=False).split(tokenizer.end_of_text)


def test_packed_documents_decode_whole_with_end_of_text_between_them(
    corpus: PackedCorpus, tokenizer: Tokenizer
) -> None:
    for split in SPLITS:
        expected = [document for document in DOCUMENTS if is_heldout(document, 0.2) == (split == "heldout")]
        *whole, last = documents_in(corpus, tokenizer, split)
        assert len(expected) - 3 <= len(whole) <= len(expected)
        assert whole == expected[: len(whole)]
        assert last == "" or expected[len(whole)].startswith(last)


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=20, unique=True))
def test_any_text_survives_tokenising_and_packing(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    tokenizer = train_tokenizer(documents_of("general", 20), 300)
    corpus = packed(tokenizer, texts, tmp_path_factory.mktemp("any") / "corpus", heldout=1e-12)
    numbers = [number for text in tokenizer.encode(texts) for number in (*text, tokenizer.end_id)]
    assert corpus.sequences("train").flatten().tolist() == numbers[: len(numbers) // LENGTH * LENGTH]
    assert [tokenizer.core.decode(text, skip_special_tokens=False) for text in tokenizer.encode(texts)] == texts


def test_only_the_incomplete_last_sequence_of_each_split_is_dropped(corpus: PackedCorpus, tokenizer: Tokenizer) -> None:
    for split in SPLITS:
        chosen = [document for document in DOCUMENTS if is_heldout(document, 0.2) == (split == "heldout")]
        tokens = sum(len(numbers) + 1 for numbers in tokenizer.encode(chosen))
        assert corpus.count(split) == tokens // LENGTH
        assert corpus.manifest[split]["documents"] == len(chosen)


def test_documents_that_another_corpus_holds_out_are_not_trained_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = pack(DOCUMENTS, tokenizer, LENGTH, Division(0.1, 0.3), None, tmp_path / "corpus", lambda *_: None)
    *train, _ = documents_in(corpus, tokenizer, "train")
    *heldout, _ = documents_in(corpus, tokenizer, "heldout")
    assert not any(is_heldout(document, 0.3) for document in train)
    assert all(is_heldout(document, 0.1) for document in heldout)
    assert heldout
    assert train


def test_exact_duplicates_are_dropped_so_none_is_in_both_splits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    once = packed(tokenizer, DOCUMENTS, tmp_path / "once")
    thrice = packed(tokenizer, DOCUMENTS * 2 + DOCUMENTS[::-1], tmp_path / "thrice")
    assert thrice.fingerprint == once.fingerprint
    assert thrice.manifest["train"]["documents"] + thrice.manifest["heldout"]["documents"] == len(DOCUMENTS)


@pytest.mark.parametrize("tokens", [LENGTH, 500, 1000, 4000, None])
def test_held_out_documents_are_never_trained_on_whatever_the_token_budget(
    tokenizer: Tokenizer, tmp_path: Path, tokens: int | None
) -> None:
    everything = packed(tokenizer, DOCUMENTS, tmp_path / "everything")
    limited = packed(tokenizer, DOCUMENTS * 2, tmp_path / "limited", tokens=tokens)
    held = set(documents_in(everything, tokenizer, "heldout")[:-1])
    trained = set(documents_in(limited, tokenizer, "train")[:-1])
    assert len(held) > 30
    assert trained or tokens == LENGTH
    assert not held & trained


@pytest.mark.parametrize("tokens", [LENGTH, 500, 1000, 1007, 4000])
def test_the_training_split_exceeds_its_token_budget_by_at_most_one_document(
    tokenizer: Tokenizer, tmp_path: Path, tokens: int
) -> None:
    corpus = packed(tokenizer, DOCUMENTS, tmp_path / "limited", tokens=tokens)
    longest = max(len(numbers) + 1 for numbers in tokenizer.encode(DOCUMENTS))
    assert tokens // LENGTH <= corpus.count("train") <= (tokens + longest) // LENGTH


def test_the_data_of_a_smaller_token_budget_is_the_beginning_of_that_of_a_larger_one(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small, large = (packed(tokenizer, DOCUMENTS, tmp_path / str(size), tokens=size) for size in (1000, 3000))
    assert (large.sequences("train")[: small.count("train")] == small.sequences("train")).all()


@pytest.mark.parametrize("documents", [1, 7, 1000])
@pytest.mark.parametrize("tokens", [1007, None])
def test_packed_data_does_not_depend_on_the_size_and_number_of_batches(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: int, tokens: int | None
) -> None:
    default = packed(tokenizer, DOCUMENTS * 2, tmp_path / "default", tokens=tokens)
    monkeypatch.setattr("retain.datamodules.corpora.parts.batches.BATCH_DOCUMENTS", documents)
    monkeypatch.setattr("retain.datamodules.corpora.parts.batches.BATCH_CHARACTERS", 500)
    monkeypatch.setattr("retain.datamodules.corpora.parts.batches.CONCURRENT_BATCHES", documents)
    rebatched = packed(tokenizer, DOCUMENTS * 2, tmp_path / "rebatched", tokens=tokens)
    assert rebatched.manifest == default.manifest


def test_the_fingerprint_depends_only_on_the_packed_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, again = (packed(tokenizer, DOCUMENTS, tmp_path / name) for name in ("first", "again"))
    other = packed(tokenizer, [*DOCUMENTS[:-1], "another"], tmp_path / "other")
    shifted = packed(tokenizer, DOCUMENTS, tmp_path / "shifted", heldout=0.3)
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, shifted.fingerprint}) == 3


def test_a_token_takes_two_bytes_if_the_vocabulary_allows(corpus: PackedCorpus) -> None:
    assert corpus.sequences("train").dtype == np.dtype("<u2")
    assert (corpus.folder / "train.bin").stat().st_size == corpus.count("train") * LENGTH * 2


def test_a_packed_corpus_is_opened_from_its_folder(corpus: PackedCorpus) -> None:
    opened = open_packed(corpus.folder)
    assert opened.fingerprint == corpus.fingerprint
    assert (opened.sequences("heldout") == corpus.sequences("heldout")).all()
    with pytest.raises(FileNotFoundError):
        open_packed(corpus.folder / "absent")


def test_a_split_without_sequences_is_empty_and_no_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = packed(tokenizer, DOCUMENTS[:3], tmp_path / "corpus", heldout=1e-12)
    assert corpus.count("heldout") == 0
    assert corpus.sequences("heldout").shape == (0, LENGTH)


def test_progress_is_reported_with_documents_and_training_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    corpus = pack(
        DOCUMENTS, tokenizer, LENGTH, Division(0.2, 0.2), None, tmp_path / "corpus", lambda *counts: seen.append(counts)
    )
    assert seen[-1][0] == len(DOCUMENTS)
    assert corpus.count("train") * LENGTH <= seen[-1][1] < (corpus.count("train") + 1) * LENGTH


def test_a_damaged_corpus_is_detected(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = packed(tokenizer, DOCUMENTS, tmp_path / "corpus")
    folder = corpus.folder.rename(tmp_path / corpus.fingerprint)
    assert packed_problem(folder) is None
    content = bytearray((folder / "train.bin").read_bytes())
    content[100] ^= 1
    (folder / "train.bin").write_bytes(content)
    assert packed_problem(folder) == "train.bin is damaged; delete the folder and prepare the study's data again"
    (folder / "manifest.json").unlink()
    assert "cannot be read" in str(packed_problem(folder))


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 40) | st.sampled_from([0, 1, 2**64 - 1]), max_size=30), max_size=20))
def test_only_the_first_of_equal_hashes_is_new(batches: list[list[int]]) -> None:
    known, seen = HashSet(), set[int]()
    for batch in batches:
        expected = []
        for index, number in enumerate(batch):
            if number not in seen:
                seen.add(number)
                expected.append(index)
        assert known.add(batch) == expected


def test_a_hash_takes_eight_bytes_and_the_arrays_stay_few() -> None:
    known = HashSet()
    for begin in range(0, 2**16, 2**6):
        known.add([number * 0x9E3779B97F4A7C15 % 2**64 for number in range(begin, begin + 2**6)])
    assert sum(array.nbytes for array in known.arrays) == 8 * 2**16
    assert len(known.arrays) <= 16
