"""The values of the held-out documents of a corpus with `by`, as `retain data` keeps them."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.datamodules.corpora.documents import is_heldout
from retain.datamodules.corpora.known import known_facts, remembered_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import packed_corpus, stored_tokenizer
from retain.datamodules.corpora.values.labels import Labels, labels_problem, read_labels
from retain.sweeps.base.errors import RetainError, StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.tree import expand
from tests.studies import documents_of, tiny_fields, write_corpus

SOURCE = "music.jsonl"
Records = list[dict[str, Any]]


def records() -> Records:
    """The documents of music, each with a source in an object; every fifth has none."""
    return [
        {"text": text} | ({"meta": {"src": ("folk", "jazz")[number % 2]}} if number % 5 else {})
        for number, text in enumerate(documents_of("music"))
    ]


def write(folder: Path, found: Sequence[dict[str, Any]], **fields: Any) -> Path:
    """Write the study and its corpora; files that would stay the same are not touched."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_fields(grid={}, **{"corpora.music.by": "meta.src", **fields})))
    for name in ("general", "chemistry"):
        if not list(folder.glob(f"{name}.*")):
            write_corpus(folder, name)
    text = "".join(json.dumps(record) + "\n" for record in found)
    if not (folder / SOURCE).exists() or (folder / SOURCE).read_text() != text:
        (folder / SOURCE).write_text(text)
    return path


def labels_in(store: Path, path: Path) -> Labels:
    facts = prepare(read_study(str(path)), store).corpora["music", 32]
    assert facts.values is not None
    labels = read_labels(store, facts.values.fingerprint)
    assert labels.corpus == facts.fingerprint
    return labels


def value_of(record: dict[str, Any]) -> str:
    return str(record.get("meta", {}).get("src", "none"))


def test_every_heldout_token_has_the_value_of_its_document(tmp_path: Path) -> None:
    path = write(tmp_path, [*records(), *records()[:50]])  # repeated documents are packed once
    labels = labels_in(tmp_path / "store", path)
    assert labels.values == ("folk", "jazz", "none")
    packed = packed_corpus(tmp_path / "store", labels.corpus)
    tokens = packed.sequences("heldout")
    found = labels.of_tokens(*tokens.shape)
    tokenizer = stored_tokenizer(tmp_path / "store", packed.manifest["tokenizer"])
    held = [record for record in records() if is_heldout(record["text"], 0.1)]
    expected = [
        labels.values.index(value_of(record))
        for record in held
        for _ in [*tokenizer.encode([record["text"]])[0], tokenizer.end_id]
    ]
    assert found.ravel().tolist() == expected[: tokens.size]
    assert set(found.ravel().tolist()) == {0, 1, 2}


def test_by_changes_no_fingerprint_and_no_stage_key_and_packs_nothing_again(tmp_path: Path) -> None:
    path = write(tmp_path, records(), **{"corpora.music.by": None})
    before = prepare(read_study(str(path)), tmp_path / "store")
    packed = {file: file.stat().st_mtime_ns for file in (tmp_path / "store" / "corpora").rglob("*")}
    write(tmp_path, records())
    file = read_study(str(path))
    assert known_facts(file, tmp_path / "store").corpora["music", 32].values is None
    after = prepare(file, tmp_path / "store")
    assert {place: one.fingerprint for place, one in after.corpora.items()} == {
        place: one.fingerprint for place, one in before.corpora.items()
    }
    assert after.tokenizer == before.tokenizer
    assert list(expand(file, after).stages) == list(expand(file, before).stages)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "store" / "corpora").rglob("*")} == packed
    assert known_facts(file, tmp_path / "store") == after


def test_values_that_are_prepared_are_found_when_the_source_is_gone(tmp_path: Path) -> None:
    path = write(tmp_path, records())
    made = prepare(read_study(str(path)), tmp_path / "store")
    (tmp_path / SOURCE).unlink()
    found, remarks = remembered_facts(read_study(str(path)), tmp_path / "store")
    assert found.corpora["music", 32].values == made.corpora["music", 32].values
    assert len(remarks) == 1


def test_a_heldout_split_of_its_own_and_responses_have_values_too(tmp_path: Path) -> None:
    def with_response(found: Records) -> Records:
        return [record | {"q": record["text"][:9], "a": record["text"][9:]} for record in found]

    held = with_response(records())[:60]
    fields = {
        "files": SOURCE,
        "prompt": "{q}",
        "response": "{a}",
        "by": "meta.src",
        "heldout": {"files": "held.jsonl"},
    }
    path = write(tmp_path, with_response(records())[60:], **{"corpora.music": fields})
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held))
    labels = labels_in(tmp_path / "store", path)
    assert labels.values == ("folk", "jazz", "none")
    changes = [value_of(record) for record in held]
    runs = 1 + sum(one != other for one, other in itertools.pairwise(changes))
    assert len(labels.runs) == runs


def test_parquet_and_numbers_and_truth_values_are_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    found = [
        {"text": one["text"], "meta": {"src": number % 3, "kept": number % 2 == 0}}
        for number, one in enumerate(records())
    ]
    for field, values in (("meta.src", ("0", "1", "2")), ("meta.kept", ("false", "true"))):
        path = write(tmp_path, [], **{"corpora.music": {"files": "music.parquet", "heldout": 0.1, "by": field}})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), tmp_path / "music.parquet")
        assert labels_in(tmp_path / "store", path).values == values


def every(value: Callable[[int], Any]) -> Records:
    return [{"text": one["text"], "meta": {"src": value(number)}} for number, one in enumerate(records())]


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (
            [{"text": one["text"], "id": 1} for one in records()],
            "by: no record has a field 'meta.src' (the first one has text, id)",
        ),
        (every(lambda number: "x" * 101), "field 'meta.src' is 'xxxx"),
        (
            every(lambda number: ["a"]),
            "field 'meta.src' is of type list, expected text or a whole number; correct `by:`",
        ),
    ],
)
def test_values_that_cannot_be_used_are_one_sentence(tmp_path: Path, found: Records, problem: str) -> None:
    path = write(tmp_path, found)
    with pytest.raises(StudyError) as error:
        prepare(read_study(str(path)), tmp_path / "store")
    assert problem in str(error.value)
    assert str(error.value).startswith("tiny.yaml: corpora.music: ")


def test_more_values_than_a_table_can_show_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, every(lambda number: number), **{"corpora.music.heldout": 0.5})
    with pytest.raises(
        StudyError, match=r"corpora.music: by: field 'meta.src' has more than 64 values in the held-out"
    ):
        prepare(read_study(str(path)), tmp_path / "store")


@pytest.mark.parametrize(
    ("corpus", "problem"),
    [
        ({"package": "docstrings", "by": "src"}, "by: the documents of packages have no fields"),
        ({"files": "general.txt", "separator": "\n\n", "by": "src"}, "by: plain text has no fields"),
    ],
)
def test_sources_without_fields_are_refused(tmp_path: Path, corpus: dict[str, Any], problem: str) -> None:
    path = write(tmp_path, records(), **{"corpora.general": corpus, "corpora.music.by": None})
    with pytest.raises(StudyError, match=problem):
        prepare(read_study(str(path)), tmp_path / "store")


def test_damaged_values_are_named_and_made_again(tmp_path: Path) -> None:
    path, store = write(tmp_path, records()), tmp_path / "store"
    labels = labels_in(store, path)
    place = store / "values" / f"{labels.fingerprint}.json"
    assert labels_problem(place) is None
    good = place.read_text()
    place.write_text(good.replace('"jazz"', '"soul"'))
    assert "its fingerprint does not match" in str(labels_problem(place))
    assert labels_in(store, path) == labels
    assert place.read_text() == good


def test_documents_that_are_not_those_that_were_packed_are_refused(tmp_path: Path) -> None:
    path, store = write(tmp_path, records(), **{"corpora.music.by": None}), tmp_path / "store"
    prepare(read_study(str(path)), store)
    source = tmp_path / SOURCE
    status = source.stat()
    write(tmp_path, [record | {"text": record["text"].replace(" C ", " D ")} for record in records()])
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # a change that nothing shows
    with pytest.raises(RetainError, match=r"corpora.music.by: the held-out documents are not those that were packed"):
        prepare(read_study(str(path)), store)
