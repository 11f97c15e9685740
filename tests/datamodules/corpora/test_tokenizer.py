import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from retain.datamodules.corpora.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    fetch_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from retain.sweeps.base.errors import MissingResourceError, StudyError
from tests.studies import documents_of

TRAINED = train_tokenizer(documents_of("general", 200), 320)


def saved(folder: Path, **settings: Any) -> Path:
    TRAINED.save(folder)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_training_gives_exactly_the_requested_entries_with_end_of_text_first() -> None:
    assert TRAINED.vocabulary == 320
    assert TRAINED.end_id == 0
    assert TRAINED.end_of_text == END_OF_TEXT


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_round_trips_even_if_it_is_unlike_the_training_text(text: str) -> None:
    (numbers,) = TRAINED.encode([text])
    assert TRAINED.core.decode(numbers, skip_special_tokens=False) == text


def test_encoding_adds_no_special_tokens() -> None:
    assert TRAINED.encode(["", "the model"])[0] == []
    assert TRAINED.end_id not in TRAINED.encode(["the model of a river"])[0]


def test_training_on_the_same_text_gives_the_same_tokeniser() -> None:
    again = train_tokenizer(documents_of("general", 200), 320)
    other = train_tokenizer(documents_of("music", 200), 320)
    assert again.fingerprint == TRAINED.fingerprint
    assert other.fingerprint != TRAINED.fingerprint


def test_too_little_text_is_refused_with_the_number_of_entries_it_yields() -> None:
    with pytest.raises(
        StudyError, match=r"tokenizer\.train: the corpora yield \d+ of 2000 entries; lower tokenizer\.train"
    ):
        train_tokenizer(["a few words"], 2000)


def test_a_saved_tokeniser_loads_with_the_same_fingerprint(tmp_path: Path) -> None:
    loaded = load_tokenizer(saved(tmp_path / "tok"))
    assert loaded.fingerprint == TRAINED.fingerprint
    assert loaded.encode(documents_of("music", 3)) == TRAINED.encode(documents_of("music", 3))


def test_transformers_reads_a_saved_tokeniser(tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved(tmp_path / "tok"))
    text = documents_of("chemistry", 1)[0]
    assert theirs(text)["input_ids"] == TRAINED.encode([text])[0]
    assert (theirs.eos_token, theirs.eos_token_id) == (END_OF_TEXT, TRAINED.end_id)


def test_a_local_folder_may_be_named_instead_of_an_id(tmp_path: Path) -> None:
    saved(tmp_path / "mine")
    assert fetch_tokenizer("mine", None, tmp_path).fingerprint == TRAINED.fingerprint
    assert fetch_tokenizer(str(tmp_path / "mine"), None, Path("/nowhere")).fingerprint == TRAINED.fingerprint


@pytest.mark.parametrize("end", [END_OF_TEXT, {"content": END_OF_TEXT, "lstrip": False}], ids=["text", "mapping"])
def test_eos_token_is_read_in_both_forms_that_hugging_face_writes(tmp_path: Path, end: Any) -> None:
    assert load_tokenizer(saved(tmp_path / "tok", eos_token=end)).end_id == TRAINED.end_id


def test_the_end_of_text_token_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    assert load_tokenizer(saved(tmp_path / "tok", eos_token="!")).fingerprint != TRAINED.fingerprint


@pytest.mark.parametrize("end", [None, "<absent>"])
def test_a_tokeniser_without_an_end_of_text_token_is_refused(tmp_path: Path, end: str | None) -> None:
    with pytest.raises(
        StudyError, match=r"eos_token is missing in tokenizer_config\.json or not in the vocabulary; choose another"
    ):
        load_tokenizer(saved(tmp_path / "tok", eos_token=end))


def test_truncation_and_padding_of_a_tokeniser_are_switched_off(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tok")
    limited = load_tokenizer(folder).core
    limited.enable_truncation(4)
    limited.enable_padding(length=8)
    limited.save(str(folder / "tokenizer.json"))
    texts = ["the", "the model of a river and its bank under old rain"]
    assert load_tokenizer(folder).encode(texts) == TRAINED.encode(texts)


def test_a_tokeniser_that_cannot_be_downloaded_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        MissingResourceError, match=r"tokenizer\.hf: not/a/name cannot be downloaded .*; check id and revision"
    ):
        fetch_tokenizer("not/a/name", None, tmp_path)


def test_documents_are_encoded_in_order() -> None:
    documents = documents_of("general", 500)
    assert TRAINED.encode(documents) == [TRAINED.encode([document])[0] for document in documents]
    assert isinstance(TRAINED, Tokenizer)
