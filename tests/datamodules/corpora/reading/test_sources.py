import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from retain.datamodules.corpora.documents import is_heldout, read_documents
from retain.datamodules.corpora.reading.packages import READERS
from retain.datamodules.corpora.sources import source_identity
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.corpora import Corpus

DOCUMENTS = ["first document", "second, with\ntwo lines", "third: ünïcödé ♪"]


def read(folder: Path, **corpus: Any) -> list[str]:
    return list(read_documents(Corpus(**corpus), folder))


def jsonl(documents: list[str], field: str = "text") -> str:
    return "".join(json.dumps({field: document, "id": 7}) + "\n" for document in documents)


def compressed(path: Path, text: str) -> Path:
    content = text.encode()
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


def parquet(path: Path, documents: list[str | None]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": documents, "id": list(range(len(documents)))}), path)


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson"])
def test_jsonl_is_read_plain_or_compressed(tmp_path: Path, ending: str, compression: str) -> None:
    compressed(tmp_path / f"a{ending}{compression}", jsonl(DOCUMENTS))
    assert read(tmp_path, files=f"a{ending}{compression}") == DOCUMENTS


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", [".txt", ".text", ".md", ".abc"])
def test_a_text_file_is_one_document_or_is_split_at_a_separator(tmp_path: Path, ending: str, compression: str) -> None:
    compressed(tmp_path / f"a{ending}{compression}", "\n\n".join(DOCUMENTS))
    assert read(tmp_path, files=f"a{ending}{compression}") == ["\n\n".join(DOCUMENTS)]
    assert read(tmp_path, files=f"a{ending}{compression}", separator="\n\n") == DOCUMENTS


def test_parquet_is_read(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [*DOCUMENTS])
    assert read(tmp_path, files="a.parquet") == DOCUMENTS


def test_a_zstd_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    frames = [zstandard.compress(jsonl([document]).encode()) for document in DOCUMENTS]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert read(tmp_path, files="a.jsonl.zst") == DOCUMENTS


def test_a_separator_is_found_across_the_blocks_of_a_large_file(tmp_path: Path) -> None:
    documents = ["a" * ((1 << 20) - 2), "b" * 10, "c" * (1 << 20)]
    (tmp_path / "a.txt").write_text("\n----\n".join(documents))
    assert read(tmp_path, files="a.txt", separator="\n----\n") == documents


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(["", "one", " \n\t"]) + "\n\n")
    assert read(tmp_path, files="a.jsonl") == ["one"]


def test_the_text_may_be_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(DOCUMENTS, field="body"))
    assert read(tmp_path, files="a.jsonl", text="body") == DOCUMENTS


def test_folders_globs_lists_and_absolute_paths_match_files_each_read_once_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, document in (("in/b.txt", "b"), ("in/a.txt", "a"), ("in/deep/c.txt", "c")):
        (tmp_path / name).write_text(document)
    assert read(tmp_path, files="in") == ["a", "b", "c"]
    assert read(tmp_path, files="in/*.txt") == ["a", "b"]
    assert read(tmp_path, files=["in/b.txt", "in/**/*.txt"]) == ["a", "b", "c"]
    assert read(Path("/nowhere"), files=str(tmp_path / "in" / "?.txt")) == ["a", "b"]


@pytest.mark.parametrize(
    ("package", "min_characters"),
    [("docstrings", 10_000), ("instructions", 10_000), ("music21", 5_000), ("chemicals", 10_000)],
)
def test_installed_packages_are_corpora(package: str, min_characters: int) -> None:
    documents = [
        document for _, document in zip(range(200), read_documents(Corpus(package=package), Path()), strict=False)
    ]
    assert len(documents) == 200
    assert sum(map(len, documents)) > min_characters
    versions = source_identity(Corpus(package=package), Path())["versions"]
    assert set(versions) == set(READERS[package][0])


def test_music21_holds_abc_tunes_and_chemicals_holds_compound_records() -> None:
    tune, compound = (next(iter(READERS[name][1]())) for name in ("music21", "chemicals"))
    assert tune.startswith("X:")
    assert "\nK:" in tune
    assert "\t" in compound
    assert "\n" not in compound


def test_the_instructions_share_no_package_with_the_docstrings() -> None:
    first = next(iter(READERS["instructions"][1]()))
    assert first.startswith("### Instruction:\nExplain `")
    assert "\n\n### Response:\n" in first
    assert not set(READERS["instructions"][0]) & set(READERS["docstrings"][0])


HF_FILES: dict[str, Callable[[Path], object]] = {
    "json": lambda path: path.write_text(jsonl(DOCUMENTS)),
    "csv": lambda path: path.write_text("text,id\n" + "".join(f'"{document}",7\n' for document in DOCUMENTS)),
    "parquet": lambda path: parquet(path, [*DOCUMENTS]),
}


@pytest.mark.parametrize("builder", HF_FILES)
def test_local_files_are_read_through_datasets(tmp_path: Path, builder: str) -> None:
    HF_FILES[builder](tmp_path / f"data.{builder}")
    assert read(tmp_path, hf=builder, files=f"data.{builder}") == DOCUMENTS


def error_message(action: Callable[[], object], kind: type[RetainError] = StudyError) -> str:
    with pytest.raises(kind) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_pattern_without_a_match_is_named_with_its_base_folder(tmp_path: Path) -> None:
    message = error_message(lambda: read(tmp_path, files="absent.txt"), MissingResourceError)
    assert message == f"files: no file matches absent.txt (in {tmp_path}); correct the path"
    (tmp_path / "empty").mkdir()
    assert "files: no file matches empty" in error_message(lambda: read(tmp_path, files="empty"), MissingResourceError)


def test_an_unknown_package_corpus_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = error_message(lambda: source_identity(Corpus(package="numpy"), tmp_path))
    assert message == "package: unknown corpus 'numpy'; choose one of docstrings, instructions, music21, chemicals"


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("a")
    message = error_message(lambda: read(tmp_path, files="a.docx"))
    assert message.startswith("files: a.docx has an unknown suffix; rename the file to a known one (.txt, ")
    assert ".jsonl" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_record_without_the_text_field_is_reported_with_its_fields(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        parquet(tmp_path / name, [*DOCUMENTS])
    else:
        compressed(tmp_path / name, jsonl(DOCUMENTS))
    message = error_message(lambda: read(tmp_path, files=name, text="body"))
    assert name in message
    assert "field 'body' not found (the fields are text, id); correct `text:` in the corpus" in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": 5}', "field 'text' is of type int, expected text"),
        ("[1]", "the record is a list, expected an object with fields"),
        ('{"text": "a', "invalid JSON"),
    ],
)
def test_an_invalid_record_is_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(DOCUMENTS) + line + "\n")
    message = error_message(lambda: read(tmp_path, files="a.jsonl"))
    assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 4: ")
    assert problem in message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "latin.txt": lambda path: path.write_bytes("Motörhead".encode("latin-1")),
    "latin.jsonl": lambda path: path.write_bytes('{"text": "Motörhead"}'.encode("latin-1")),
    "plain.txt.gz": lambda path: path.write_text("not compressed"),
    "plain.txt.zst": lambda path: path.write_text("not compressed"),
    "plain.parquet": lambda path: path.write_text("not parquet"),
    "truncated.jsonl.gz": lambda path: truncate(compressed(path, jsonl(DOCUMENTS * 100))),
    "truncated.jsonl.zst": lambda path: truncate(compressed(path, jsonl(DOCUMENTS * 100))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_an_error_and_is_never_read_as_a_shorter_one(tmp_path: Path, name: str) -> None:
    DAMAGE[name](tmp_path / name)
    message = error_message(lambda: read(tmp_path, files=name))
    assert message.startswith(f"{tmp_path / name}")
    assert "cannot be read" in message


def test_a_source_that_datasets_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{broken")
    message = error_message(lambda: read(tmp_path, hf="json", files="a.json"), MissingResourceError)
    assert message.startswith("hf: json cannot be read (")


def test_a_record_without_the_text_field_is_reported_for_datasets_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(jsonl(DOCUMENTS))
    message = error_message(lambda: read(tmp_path, hf="json", files="a.json", text="body"))
    assert message == (
        "hf: json, record 1: field 'body' not found (the fields are text, id); correct `text:` in the corpus"
    )


def test_a_changed_file_changes_the_source_identity(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    corpus = Corpus(files="a.txt")
    before = source_identity(corpus, tmp_path)
    assert source_identity(corpus, tmp_path) == before
    (tmp_path / "a.txt").write_text("three")
    assert source_identity(corpus, tmp_path) != before


def test_the_held_out_split_has_its_share_and_is_contained_in_that_of_a_larger_share() -> None:
    documents = [f"document {number}" for number in range(20_000)]
    held = {document for document in documents if is_heldout(document, 0.05)}
    assert len(held) / len(documents) == pytest.approx(0.05, rel=0.1)
    assert held <= {document for document in documents if is_heldout(document, 0.1)}
