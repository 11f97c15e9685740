"""Near copies are found; with `dedupe: near`, no held-out document has one in training."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retain.datamodules.corpora.known import known_facts
from retain.datamodules.corpora.near import sample as near_sample
from retain.datamodules.corpora.near.index import NearIndex
from retain.datamodules.corpora.near.minhash import Bands, bands, shingles
from retain.datamodules.corpora.near.sample import NearSample
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import PackedCorpus, packed_corpus, stored_tokenizer
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.sources import corpus_definition, corpus_source, tokenizer_source
from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.tree.data_facts import Reading, reading_remarks
from tests.datamodules.corpora.reading.test_odd_files import lines
from tests.studies import tiny_fields, write_corpus

BANDS_OF_A_SENTENCE = [9448001957216794199, 2217635633874713842]
"""Fixed, so that a corpus is packed to the same tokens with every version of datasketch."""
WORDS = [
    f"{first}{second}" for first in "bcdfghjklmnpqrstvwxz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")
]


def document(seed: str, words: int = 120) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def edited(text: str, seed: str = "", changes: int = 1) -> str:
    """A text with some words replaced, each of which changes five shingles."""
    draw, words = random.Random(f"{text}{seed}"), text.split()
    for place in draw.sample(range(len(words)), changes):
        words[place] = f"x{draw.randrange(10**6)}"
    return " ".join(words)


def share_band(one: Bands, other: Bands) -> bool:
    return bool((one == other).any())


def test_documents_share_a_band_as_often_as_their_similarity_says() -> None:
    found: dict[int, float] = {}
    for changes in (1, 3, 12):
        pairs = [(text := document(f"{number}"), edited(text, changes=changes)) for number in range(200)]
        similar = np.mean([len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b)) for a, b in pairs])
        found[changes] = float(np.mean([share_band(bands(a), bands(b)) for a, b in pairs]))
        assert found[changes] == pytest.approx(1 - (1 - similar**8) ** 16, abs=0.12)
    assert found[1] > 0.99
    assert found[12] < 0.2


def test_bands_depend_on_the_text_alone_and_ignore_case_and_blanks() -> None:
    assert bands("The river and its old stone bank").tolist()[:2] == BANDS_OF_A_SENTENCE
    assert np.array_equal(bands("The river\n and its  old stone BANK"), bands("the river and its old stone bank"))
    assert not share_band(bands(document("a")), bands(document("b")))
    assert share_band(bands("one two"), bands("One two"))
    assert not share_band(bands("one two"), bands("one three"))


def test_texts_without_blanks_between_words_are_compared_by_character() -> None:
    draw = random.Random(0)
    text = "".join(chr(0x4E00 + draw.randrange(2000)) for _ in range(300))
    assert share_band(bands(text), bands(text[:150] + "\u4e00" + text[151:]))
    assert not share_band(bands(text), bands(text[::-1]))


def test_an_index_keeps_the_first_of_near_copies() -> None:
    index, first, second = NearIndex(), document("a"), document("b")
    assert index.add_distinct([bands(first), bands(second), bands(edited(first))]).tolist() == [False, False, True]
    assert index.add_distinct([bands(edited(second)), bands(document("c"))]).tolist() == [True, False]
    assert index.near([bands(edited(document("c")))]).tolist() == [True]
    assert index.near([]).tolist() == []


@pytest.mark.parametrize("most", [200, 10_000])
def test_a_sample_estimates_the_share_of_near_copies_whatever_the_order(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_sample, "MOST", most)
    texts = [document(f"{number}") for number in range(900)]
    texts += [edited(text) for text in texts[:100]] + texts[:50]
    counts = []
    for seed in range(2):
        random.Random(seed).shuffle(texts)
        sample, tally = NearSample(), Tally()
        for text in texts:
            sample.add(text)
        sample.count(tally)
        counts.append(dict(tally.counts))
    assert counts[0] == counts[1]
    assert counts[0]["sampled"] == min(most, 1000)
    assert counts[0]["near"] / counts[0]["sampled"] == pytest.approx(0.2, abs=0.005 if most > 1000 else 0.09)


def test_a_sample_is_bounded_even_if_all_documents_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_sample, "MOST", 50)
    sample, tally = NearSample(), Tally()
    for number in range(1000):
        sample.add("You are a helpful assistant. " * 60 + document(f"{number}"))
        assert len(sample.texts) < 100 + near_sample.TOGETHER
    sample.count(tally)
    assert tally.counts["sampled"] == 50


def study(folder: Path, **fields: Any) -> StudyFile:
    """A tiny study in which music and prose hold near copies of their own and of each other's documents."""
    write_corpus(folder, "chemistry")
    write_corpus(folder, "general")
    music, prose = ([document(f"{name}{number}") for number in range(300)] for name in ("music", "prose"))
    near = [edited(text) for text in (*music[:60], *prose[:60])]
    random.Random(0).shuffle(near)
    (folder / "music.jsonl").write_bytes(lines(*near[:60], *music, music[7]))
    (folder / "prose.jsonl").write_bytes(lines(*prose, *near[60:], prose[7]))
    made = tiny_fields(grid={})
    made["corpora"] |= {name: {"files": f"{name}.jsonl", "heldout": 0.2} for name in ("music", "prose")}
    made["pretrain"]["mix"] = {"prose": {"tokens": 640}}
    for name, value in fields.items():
        made["corpora"][name] |= value
    return check_study(made, folder / "a.yaml")


def texts_of(packed: PackedCorpus, split: str, store: Path, tokenizer: str) -> list[str]:
    """The whole documents of a split."""
    made = stored_tokenizer(store, tokenizer)
    text = made.core.decode(packed.sequences(split).ravel().tolist(), skip_special_tokens=False)
    return text.split(made.end_of_text)[:-1]


def splits(file: StudyFile, store: Path) -> dict[str, list[str]]:
    facts = prepare(file, store)
    found = {}
    for name in ("music", "prose"):
        packed = packed_corpus(store, facts.corpora[name, 32].fingerprint)
        for split in ("train", "heldout"):
            found[f"{name}.{split}"] = texts_of(packed, split, store, facts.tokenizer)
    return found


def leaks(found: dict[str, list[str]], name: str) -> int:
    """The training documents of a corpus with a near copy that is held out."""
    held = NearIndex()
    for other in ("music", "prose"):
        held.add([bands(text) for text in found[f"{other}.heldout"]])
    return int(held.near([bands(text) for text in found[f"{name}.train"]]).sum())


NEAR = {"dedupe": "near"}


def test_with_dedupe_near_no_held_out_document_has_a_near_copy_in_training(tmp_path: Path) -> None:
    store = tmp_path / "store"
    exact, near = (splits(study(tmp_path, **fields), store) for fields in ({}, {"music": NEAR, "prose": NEAR}))
    for name in ("music", "prose"):
        assert leaks(exact, name) > 5
        assert leaks(near, name) == 0
        assert near[f"{name}.heldout"] == exact[f"{name}.heldout"]
        index = NearIndex()
        assert not index.add_distinct([bands(text) for text in near[f"{name}.train"]]).any()
        assert set(near[f"{name}.train"]) < set(exact[f"{name}.train"])


def test_the_near_copies_are_counted(tmp_path: Path) -> None:
    exact = prepare(study(tmp_path), tmp_path / "store")
    near = prepare(study(tmp_path, music=NEAR), tmp_path / "store")
    estimate, dropped = (facts.corpora["music", 32].reading for facts in (exact, near))
    assert estimate is not None
    assert dropped is not None
    assert estimate.sampled == 360
    texts = (tmp_path / "music.jsonl").read_text()
    own = sum(edited(document(f"music{number}")) in texts for number in range(60))
    assert 2 * own - 4 <= (estimate.near or 0) <= 2 * own
    assert estimate.duplicates == dropped.duplicates == 1
    assert dropped.sampled == 0
    assert dropped.leaked > 0
    assert estimate.documents - dropped.documents == (dropped.near or 0) + dropped.leaked
    assert near.corpora["prose", 32] == exact.corpora["prose", 32]


def test_with_a_token_budget_training_reads_on_and_the_held_out_split_stays(tmp_path: Path) -> None:
    store, budget = tmp_path / "store", {"tokens": 20_000}
    exact = splits(study(tmp_path, music=budget), store)
    near = splits(study(tmp_path, music=budget | NEAR), store)
    assert near["music.heldout"] == exact["music.heldout"]
    assert leaks(near, "music") == 0
    assert abs(len(near["music.train"]) - len(exact["music.train"])) < 5
    assert near["music.train"][-1] not in exact["music.train"]


def test_a_split_that_a_corpus_brings_along_has_no_near_copy_in_training_either(tmp_path: Path) -> None:
    (tmp_path / "valid.jsonl").write_bytes(
        lines(*(edited(document(f"music{number}"), "valid") for number in range(99)))
    )
    found = splits(study(tmp_path, prose={"heldout": {"files": "valid.jsonl"}}, music=NEAR), tmp_path / "store")
    assert len(found["prose.heldout"]) > 90
    assert leaks(found, "music") == 0
    assert not {document(f"music{number}") for number in range(99)} & set(found["music.train"])


def test_dedupe_is_part_of_sources_and_definitions_only_where_it_is_near(tmp_path: Path) -> None:
    exact, near = study(tmp_path), study(tmp_path, music=NEAR)
    for made in (corpus_source, corpus_definition):
        arguments = (32, "t") if made is corpus_source else (32,)
        assert "near" not in made(exact, "music", *arguments)
        assert "'dedupe'" not in str(made(exact, "music", *arguments))
        assert len(made(near, "music", *arguments)["near"]) == 4
    assert corpus_source(near, "prose", 32, "t") == corpus_source(exact, "prose", 32, "t")
    assert tokenizer_source(near) == tokenizer_source(exact)


def test_a_change_of_another_corpus_makes_the_near_copies_new(tmp_path: Path) -> None:
    file, store = study(tmp_path, music=NEAR), tmp_path / "store"
    prepare(file, store)
    with (tmp_path / "prose.jsonl").open("ab") as stream:
        stream.write(lines(*(edited(document(f"music{number}"), "more") for number in range(60, 300))))
    assert not known_facts(file, store).corpora["music", 32].prepared


def test_remarks_say_how_near_copies_were_found() -> None:
    assert reading_remarks(Reading(9, 90, near=2, sampled=9)) == [
        "22.2% of documents have a near copy (2 of 9 sampled)"
    ]
    assert reading_remarks(Reading(9, 90, near=1, leaked=3)) == [
        "dropped 1 near copy of training documents and 3 of held-out documents"
    ]
