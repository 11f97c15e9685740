"""What is skipped, replaced and left out while a corpus is read is counted, and stays known in the store."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.known import known_facts, remembered_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.reading.tally import Tally
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.tree.data_facts import Reading, reading_remarks
from tests.datamodules.corpora.reading.test_odd_files import Files, arrow, lines, parquet, write
from tests.studies import documents_of, tiny_fields, write_corpus

NESTED = [{"body": "a"}, {"body": None}, None, {"body": "b"}]


def counted(folder: Path, **corpus: Any) -> tuple[list[str], dict[str, int], list[str]]:
    tally = Tally()
    documents = [*map(str, read_documents(Corpus(**corpus), folder, tally=tally))]
    return documents, dict(tally.counts), tally.hidden


COUNTED: dict[str, tuple[Files, dict[str, Any], list[str], dict[str, int]]] = {
    "nulls and empty texts": (
        {"a.jsonl": lines("a", None, "", " \n", "b") + b"null\n{}\n"},
        {},
        ["a", "b"],
        {"null": 2, "empty": 3},
    ),
    "a null object above a field": (
        {"a.jsonl": lines(*NESTED, field="meta")},
        {"text": "meta.body"},
        ["a", "b"],
        {"null": 2},
    ),
    "nulls in parquet": (
        {"a.parquet": parquet({"meta": NESTED})},
        {"files": "a.parquet", "text": "meta.body"},
        ["a", "b"],
        {"null": 2},
    ),
    "nulls in arrow": (
        {"a.arrow": arrow({"text": pyarrow.array(["a", None])}, stream=True)},
        {"files": "a.arrow"},
        ["a"],
        {"null": 1},
    ),
    "empty values in csv": ({"a.csv": b"id,text\n1,a\n2,\n"}, {"files": "a.csv"}, ["a"], {"empty": 1}),
    "a null prompt": (
        {"a.jsonl": b'{"q": null, "a": "x"}\n{"q": "why", "a": "so"}\n{"q": "how", "a": null}'},
        {"template": "{q}? {a}"},
        ["why? so"],
        {"null": 2},
    ),
    "a null conversation": (
        {"a.jsonl": lines(None, [], [{"role": "user", "content": "a"}], field="m")},
        {"messages": "m"},
        ["a"],
        {"null": 1, "empty": 1},
    ),
    "halves of characters": (
        {"a.jsonl": b'{"text": "a\\ud800b \\udc00\\ud83d\\ude00"}\n{"text": "\\ud83d\\ude00"}'},
        {},
        ["a\N{REPLACEMENT CHARACTER}b \N{REPLACEMENT CHARACTER}\N{GRINNING FACE}", "\N{GRINNING FACE}"],
        {"replaced": 1},
    ),
    "nothing between separators is no document": (
        {"a.txt": b"a\n\n\n\nb\n\n"},
        {"files": "a.txt", "separator": "\n\n"},
        ["a", "b"],
        {},
    ),
    "records read by datasets": (
        {"a.jsonl": lines("a", None, "b")},
        {"files": "a.jsonl", "hf": "json"},
        ["a", "b"],
        {"null": 1},
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_what_is_skipped_or_replaced_is_counted(case: str, tmp_path: Path) -> None:
    files, fields, documents, counts = COUNTED[case]
    write(tmp_path, files)
    assert counted(tmp_path, **{"files": "a.jsonl"} | fields)[:2] == (documents, counts)


def test_a_response_keeps_its_place_where_half_a_character_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"q": "a\\ud800", "a": "b\\udc00"}')
    (document,) = read_documents(Corpus(files="a.jsonl", prompt="{q}", response="{a}"), tmp_path)
    assert not isinstance(document, str)
    ((begin, end),) = document.spans
    assert document.text[begin:end] == "b\N{REPLACEMENT CHARACTER}"


def test_a_nested_field_that_a_record_lacks_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"meta": {"body": "a"}}\n{"meta": {"text": "b"}}\n')
    with pytest.raises(StudyError, match=r"a\.jsonl, line 2: field 'meta\.body' not found \(the fields are meta, meta"):
        counted(tmp_path, files="a.jsonl", text="meta.body")


@pytest.mark.parametrize(
    ("files", "hidden"),
    [
        ("in", ["._a.jsonl", ".ipynb_checkpoints"]),
        ("in/*.jsonl", ["._a.jsonl"]),
        ("in/**/*.jsonl", [".ipynb_checkpoints", "._a.jsonl"]),
        ("in/a.jsonl", []),
        ("in/.ipynb_checkpoints/*", []),
    ],
)
def test_hidden_files_that_are_left_out_are_named(files: str, hidden: list[str], tmp_path: Path) -> None:
    names = ("in/a.jsonl", "in/._a.jsonl", "in/.ipynb_checkpoints/a.jsonl")
    write(tmp_path, {name: lines("a") for name in names} | {"in/loop": lambda path: path.symlink_to(".")})
    documents, _, found = counted(tmp_path, files=files)
    assert documents == ["a"]
    assert sorted(found) == sorted(hidden)


def study(folder: Path, **corpus: Any) -> StudyFile:
    """A tiny study whose corpus music has some of everything: 300 distinct documents."""
    for name in ("general", "chemistry"):
        write_corpus(folder, name)
    music = documents_of("music")[:300]
    (folder / "music").mkdir()
    (folder / "music" / "a.jsonl").write_bytes(lines(*music[:200], None, *music[:7], ""))
    (folder / "music" / "b.jsonl").write_bytes(lines(*music[200:], None) + b'{"text": "C \\ud800 D"}\n')
    (folder / "music" / "._b.jsonl").write_bytes(b"\0")
    fields = tiny_fields(grid={})
    fields["corpora"]["music"] = {"files": "music", "heldout": 0.1} | corpus
    fields["corpora"]["general"]["heldout"] = 0.3
    return check_study(fields, folder / "a.yaml")


def test_the_counts_of_a_corpus_stay_in_the_store(tmp_path: Path) -> None:
    file = study(tmp_path)
    facts = prepare(file, tmp_path / "store")
    read = facts.corpora["music", 32].reading
    assert read is not None
    assert (read.null, read.empty, read.duplicates, read.replaced, read.hidden) == (2, 1, 7, 1, ["._b.jsonl"])
    assert read.documents + read.withheld == 301
    assert 40 < read.withheld < 80  # the documents between the held-out shares of the two corpora
    packed = facts.corpora["music", 32]
    assert 0 <= read.tokens - 32 * ((packed.train or 0) + (packed.heldout or 0)) < 64
    assert read.tokens_per_document == read.tokens / read.documents
    assert known_facts(file, tmp_path / "store") == facts
    (tmp_path / "music" / "a.jsonl").unlink()
    assert remembered_facts(file, tmp_path / "store")[0].corpora["music", 32].reading == read


def test_a_token_budget_counts_what_was_read_up_to_it(tmp_path: Path) -> None:
    read = prepare(study(tmp_path, tokens=2560), tmp_path / "store").corpora["music", 32].reading
    assert read is not None
    assert read.documents < 100
    assert read.hidden == ["._b.jsonl"]


def test_data_of_earlier_versions_is_found_without_counts(tmp_path: Path) -> None:
    file, store = study(tmp_path), tmp_path / "store"
    facts = prepare(file, store)
    for path in (store / "prepared").rglob("*.json"):
        note = json.loads(path.read_text())
        note.pop("reading", None)
        path.write_text(json.dumps(note))
    known = known_facts(file, store)
    assert known.prepared
    assert known.corpora["music", 32].reading is None
    assert known.corpora["music", 32].fingerprint == facts.corpora["music", 32].fingerprint


def test_remarks_say_what_was_skipped_and_why() -> None:
    assert reading_remarks(Reading(3, 30)) == []
    assert reading_remarks(Reading(3, 30, 9, 1, 2, 1, 1, (".a", ".b", ".c", ".d"))) == [
        "skipped 2 records whose text is null",
        "skipped 1 empty document",
        "skipped 1 document that another corpus holds out",
        "replaced unpaired surrogates in 1 document",
        "left out 4 hidden files: .a, .b, .c, ...",
    ]
