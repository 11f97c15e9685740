import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models
from transformers import AutoTokenizer

from retain.datamodules.corpora.tokenizer import (
    END_OF_TEXT,
    LONGEST_WORD,
    Tokenizer,
    cut_long_words,
    fetch_tokenizer,
    load_tokenizer,
    saved_vocabulary,
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
        StudyError, match=r"tokenizer\.train: the corpora yield only \d+ of 2000 entries; lower tokenizer\.train"
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


def test_a_local_folder_may_be_named_instead_of_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "mine")
    assert fetch_tokenizer("mine", None, tmp_path).fingerprint == TRAINED.fingerprint
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "mine"), "~/mine", "$HOME/mine"):
        assert fetch_tokenizer(name, None, Path("/nowhere")).fingerprint == TRAINED.fingerprint
    with pytest.raises(MissingResourceError, match=r"^tokenizer\.hf: ~/yours is not a folder; correct the path$"):
        fetch_tokenizer("~/yours", None, tmp_path)


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


@pytest.mark.parametrize("normalized", [False, True])
def test_an_end_of_text_that_a_text_spells_out_ends_no_document_even_if_it_is_listed_as_an_ordinary_token(
    normalized: bool, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0] |= {"special": False, "normalized": normalized}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    listed, before = load_tokenizer(folder), load_tokenizer(folder)
    text = f"the model{END_OF_TEXT} of a river"
    assert listed.encode([text]) == TRAINED.encode([text])
    assert listed.end_id not in listed.encode([text])[0]
    assert listed.fingerprint == before.fingerprint
    (rendered,) = listed.encode_rendered([text])
    assert rendered.ids.count(listed.end_id) == 1


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


def test_a_tokeniser_whose_ids_have_a_gap_has_room_for_its_largest_id(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.__getitem__)
    vocabulary[last] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    assert loaded.vocabulary == saved_vocabulary(folder) == 1001
    assert max(max(ids) for ids in loaded.encode(documents_of("general"))) < loaded.vocabulary


def test_the_vocabulary_of_a_saved_tokeniser_is_known_without_loading_it(tmp_path: Path) -> None:
    pieces = Tokenizer(tokenizers.Tokenizer(models.Unigram([("<end>", 0.0), ("a", -1.0)], unk_id=0)), "<end>")
    gaps = load_tokenizer(saved(tmp_path / "given"))
    gaps.core.add_special_tokens(["<later>", "the"])
    content = json.loads(gaps.core.to_str())
    content["added_tokens"][-1]["id"] = 5000
    for number, tokenizer in enumerate(
        (TRAINED, pieces, gaps, replace(gaps, core=gaps.core.from_str(json.dumps(content))))
    ):
        tokenizer.save(tmp_path / str(number))
        assert saved_vocabulary(tmp_path / str(number)) == load_tokenizer(tmp_path / str(number)).vocabulary


@pytest.mark.parametrize("content", ["null", "[]", "7", "{}", '{"eos_token": 5}', '{"eos_token": {}}', "", "{"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokeniser_with_other_content_is_refused_in_one_sentence(tmp_path: Path, name: str, content: str) -> None:
    folder = saved(tmp_path / "tok")
    (folder / name).write_text(content)
    with pytest.raises(StudyError, match=r"^tokenizer: .*; choose another tokeniser$") as refused:
        load_tokenizer(folder)
    assert "\n" not in str(refused.value)


def test_a_tokeniser_that_drops_merges_at_random_encodes_a_text_the_same_each_time(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    text = documents_of("general", 1)[0]
    assert loaded.encode([text] * 20) == TRAINED.encode([text] * 20)
    assert loaded.fingerprint == TRAINED.fingerprint


@pytest.mark.parametrize("letters", ["a", "ACGT", " ", "\n"])
def test_a_document_that_is_one_long_word_delays_no_training(letters: str) -> None:
    documents = [*documents_of("general", 200), letters * (2_000_000 // len(letters))]
    began = time.monotonic()
    assert train_tokenizer(documents, 320).vocabulary == 320
    assert time.monotonic() - began < 60  # hours if the word is not cut


def test_only_words_that_are_too_long_are_cut_and_no_text_is_lost() -> None:
    ordinary = "word " * 2500 + "a" * (LONGEST_WORD - 1)
    assert list(cut_long_words(ordinary)) == [ordinary]
    for letters in ("a", "é", " ", "ab \n"):
        parts = list(cut_long_words(text := "b " + letters * 50_000 + " c"))
        assert "".join(parts) == text
        assert max(len(word) for part in parts for word in re.findall(r"\s+|\S+", part)) <= LONGEST_WORD


INTERRUPTED = """
import os, signal, threading, time, tokenizers, tokenizers.trainers  # so that the signal meets the training, not an import
from retain.datamodules.corpora.tokenizer import train_tokenizer
signal.signal(signal.SIGINT, signal.default_int_handler)  # which Python leaves out where these tests run with nohup
words = (("ab" * 4_999 + chr(0x4E00 + number)) for number in range(2_000))

def interrupt():
    print(time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)

threading.Timer(1, interrupt).start()
train_tokenizer(words, 30_000)
"""


def test_ctrl_c_ends_the_training_of_a_tokeniser_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120, check=False
    )
    assert "KeyboardInterrupt" in ended.stderr
    assert time.monotonic() - float(ended.stdout) < 15
