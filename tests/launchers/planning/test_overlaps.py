"""`retain overlap`: how near the corpora of a study are, on real packed corpora."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from retain.datamodules.corpora.overlap import measure
from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.overlaps import CorpusPair, measure_overlaps
from retain.sweeps.tree.overlap import overlap_path, read_overlap
from tests.studies import documents_of, tiny_study

LETTERS = {"general": "abcd", "music": "abcd", "chemistry": "wxyz"}


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def study(folder: Path, **fields: Any) -> Path:
    """A study whose three corpora are general, a copy of it, and one without a letter in common."""
    corpora = {name: {"files": f"{name}.jsonl", "heldout": 0.1} for name in LETTERS}
    path = tiny_study(folder, **{"grid": {}, "corpora": corpora, **fields})
    for name, letters in LETTERS.items():
        draw = random.Random(letters)
        write_lines(folder / f"{name}.jsonl", ["".join(draw.choices(letters, k=300)) for _ in range(400)])
    return path


def pairs_of(path: Path, store: Path) -> tuple[dict[tuple[str, str], CorpusPair], list[str]]:
    said: list[str] = []
    found = measure_overlaps(prepare_study(str(path), (), store), said.append)
    return {pair.names: pair for pair in found.pairs}, said


def test_a_copy_is_at_distance_0_and_shares_all_and_other_letters_are_as_far_as_can_be(tmp_path: Path) -> None:
    found, said = pairs_of(study(tmp_path), tmp_path / "store")
    assert list(found) == [("general", "music"), ("general", "chemistry"), ("music", "chemistry")]
    copy, far = found["general", "music"].overlap, found["music", "chemistry"].overlap
    assert copy.divergences == [0, 0, 0]
    (own, theirs), others = copy.cross_entropies
    assert own == theirs == others[0] == others[1]
    assert copy.shared == copy.documents[0] == copy.documents[1] > 300
    assert copy.near == copy.compared == copy.documents
    assert far.divergences == pytest.approx([math.log(2)] * 3, rel=1e-9)
    assert far.shared == 0
    assert far.near == [0, 0]
    for place in (0, 1):
        own, theirs = far.cross_entropies[place][place], far.cross_entropies[place][1 - place]
        assert own is not None
        assert theirs is not None
        assert own < theirs
    assert found["music", "chemistry"].roles == (["D_pre", "D_post"], ["D_ft"])  # by content
    assert len(said) == 2  # two corpora with the same tokens are one


def test_a_pair_is_measured_once_in_whatever_order_and_study(tmp_path: Path) -> None:
    path, store = study(tmp_path), tmp_path / "store"
    first, _ = pairs_of(path, store)
    again, said = pairs_of(path, store)
    assert again == first
    assert said == []
    one, other = first["music", "chemistry"].overlap.corpora
    turned = read_overlap(store, other, one)
    assert turned is not None
    assert turned.seen_from(one) == first["music", "chemistry"].overlap
    assert turned.cross_entropies[0][0] == first["music", "chemistry"].overlap.cross_entropies[1][1]
    assert turned.cross_entropies[0][1] == first["music", "chemistry"].overlap.cross_entropies[1][0]
    place = overlap_path(store, one, other)
    place.write_text(place.read_text().replace('"shared": 0', '"shared": "none"'))
    assert main(["verify", "--store", str(store)]) == 1
    mended, said = pairs_of(path, store)
    assert mended == first
    assert said == ["comparing general and chemistry"]


def test_part_of_the_documents_changed_shows_as_shared_and_near(tmp_path: Path) -> None:
    path = study(tmp_path)
    texts = [f"{text} " * 4 for text in documents_of("general")]
    write_lines(tmp_path / "general.jsonl", texts)
    changed = [
        text if n < 200 else text.replace("river", "brook", 1) if n < 300 else text[::-1]
        for n, text in enumerate(texts)
    ]
    write_lines(tmp_path / "music.jsonl", changed)
    overlap = pairs_of(path, tmp_path / "store")[0]["general", "music"].overlap
    assert 150 < overlap.shared < 250
    assert overlap.shared < overlap.near[0] < overlap.documents[0]
    assert 0 < overlap.divergences[0] < overlap.divergences[2] < math.log(2)


def test_what_is_compared_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TRAINING_TOKENS", 320)
    monkeypatch.setattr(measure, "HELDOUT_TOKENS", 160)
    monkeypatch.setattr(measure, "DOCUMENT_TOKENS", 3200)
    monkeypatch.setattr(measure, "NEAR_DOCUMENTS", 10)
    overlap = pairs_of(study(tmp_path), tmp_path / "store")[0]["music", "chemistry"].overlap
    assert overlap.tokens == 320
    assert overlap.heldout_tokens == [150, 150]  # without the first two of each of five sequences
    assert max(overlap.documents) < 200
    assert overlap.compared == [10, 10]


def test_the_verb_prints_a_row_for_each_direction_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, store = str(study(tmp_path)), str(tmp_path / "store")
    assert main(["overlap", path, "--store", store]) == 0
    printed = capsys.readouterr().out
    assert printed.count("music (D_pre, D_post)") == 4
    assert "0.693" in printed
    assert main(["overlap", path, "--store", store, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [pair["names"] for pair in document["pairs"]] == [
        ["general", "music"],
        ["general", "chemistry"],
        ["music", "chemistry"],
    ]
    assert document["sample"]["similarity"] == 0.8
    assert main(["verify", "--store", store]) == 0


def test_a_study_without_two_corpora_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["overlap", "theory", "--store", str(tmp_path / "store")]) == 2
    assert "theory.yaml: there are no two corpora to compare" in capsys.readouterr().err
