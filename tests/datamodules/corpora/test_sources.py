import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from retain.datamodules.corpora.documents import is_heldout, read_documents, source_of
from retain.datamodules.corpora.packages import READERS
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.study import Corpus

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
def test_text_is_one_document_a_file_or_cut_at_a_separator(tmp_path: Path, ending: str, compression: str) -> None:
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


def test_a_separator_is_found_across_the_blocks_in_which_a_file_is_read(tmp_path: Path) -> None:
    documents = ["a" * ((1 << 20) - 2), "b" * 10, "c" * (1 << 20)]
    (tmp_path / "a.txt").write_text("\n----\n".join(documents))
    assert read(tmp_path, files="a.txt", separator="\n----\n") == documents


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(["", "one", " \n\t"]) + "\n\n")
    assert read(tmp_path, files="a.jsonl") == ["one"]


def test_another_field_can_hold_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(DOCUMENTS, field="body"))
    assert read(tmp_path, files="a.jsonl", text="body") == DOCUMENTS


def test_folders_globs_lists_and_absolute_paths_name_files_each_read_once_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, document in (("in/b.txt", "b"), ("in/a.txt", "a"), ("in/deep/c.txt", "c")):
        (tmp_path / name).write_text(document)
    assert read(tmp_path, files="in") == ["a", "b", "c"]
    assert read(tmp_path, files="in/*.txt") == ["a", "b"]
    assert read(tmp_path, files=["in/b.txt", "in/**/*.txt"]) == ["a", "b", "c"]
    assert read(Path("/nowhere"), files=str(tmp_path / "in" / "?.txt")) == ["a", "b"]


@pytest.mark.parametrize(
    ("package", "at_least"),
    [("docstrings", 10_000), ("instructions", 10_000), ("music21", 5_000), ("chemicals", 10_000)],
)
def test_installed_packages_are_corpora(package: str, at_least: int) -> None:
    documents = [
        document for _, document in zip(range(200), read_documents(Corpus(package=package), Path()), strict=False)
    ]
    assert len(documents) == 200
    assert sum(map(len, documents)) > at_least
    versions = source_of(Corpus(package=package), Path())["versions"]
    assert set(versions) == set(READERS[package][0])


def test_package_corpora_hold_what_they_are_named_after() -> None:
    tune, compound = (next(iter(READERS[name][1]())) for name in ("music21", "chemicals"))
    assert tune.startswith("X:")
    assert "\nK:" in tune
    assert "\t" in compound
    assert "\n" not in compound


def test_the_instructions_ask_for_what_no_docstring_corpus_holds() -> None:
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


def refusal(action: Callable[[], object], kind: type[RetainError] = StudyError) -> str:
    with pytest.raises(kind) as refused:
        action()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_from(tmp_path: Path) -> None:
    message = refusal(lambda: read(tmp_path, files="absent.txt"), MissingResourceError)
    assert message == f"files: absent.txt names no file (looked from {tmp_path}); correct the path"
    (tmp_path / "empty").mkdir()
    assert "files: empty names no file" in refusal(lambda: read(tmp_path, files="empty"), MissingResourceError)


def test_an_unknown_package_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(lambda: source_of(Corpus(package="numpy"), tmp_path))
    assert message == "package: 'numpy' is not known; the packages are docstrings, instructions, music21, chemicals"


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("a")
    message = refusal(lambda: read(tmp_path, files="a.docx"))
    assert message.startswith("files: a.docx has no known ending (.txt, ")
    assert ".jsonl" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_record_without_the_text_field_is_named_with_its_fields(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        parquet(tmp_path / name, [*DOCUMENTS])
    else:
        compressed(tmp_path / name, jsonl(DOCUMENTS))
    message = refusal(lambda: read(tmp_path, files=name, text="body"))
    assert name in message
    assert "field 'body' (it has text, id); set text: in the corpus" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [('{"text": 5}', "no text in field 'text'"), ("[1]", "(it has list)"), ('{"text": "a', "not JSON")],
)
def test_a_broken_record_is_named_by_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(DOCUMENTS) + line + "\n")
    message = refusal(lambda: read(tmp_path, files="a.jsonl"))
    assert message.startswith(f"{tmp_path / 'a.jsonl'}, line 4: ")
    assert words in message


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "latin.txt": lambda path: path.write_bytes("Motörhead".encode("latin-1")),
    "latin.jsonl": lambda path: path.write_bytes('{"text": "Motörhead"}'.encode("latin-1")),
    "plain.txt.gz": lambda path: path.write_text("not compressed"),
    "plain.txt.zst": lambda path: path.write_text("not compressed"),
    "plain.parquet": lambda path: path.write_text("not parquet"),
    "cut.jsonl.gz": lambda path: cut(compressed(path, jsonl(DOCUMENTS * 100))),
    "cut.jsonl.zst": lambda path: cut(compressed(path, jsonl(DOCUMENTS * 100))),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_named_and_never_read_as_a_shorter_one(tmp_path: Path, name: str) -> None:
    DAMAGE[name](tmp_path / name)
    message = refusal(lambda: read(tmp_path, files=name))
    assert message.startswith(f"{tmp_path / name}")
    assert "cannot be read" in message


def test_a_source_that_datasets_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{broken")
    message = refusal(lambda: read(tmp_path, hf="json", files="a.json"), MissingResourceError)
    assert message.startswith("hf: json cannot be read (")


def test_a_source_without_the_text_field_is_named_through_datasets_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(jsonl(DOCUMENTS))
    message = refusal(lambda: read(tmp_path, hf="json", files="a.json", text="body"))
    assert message == "hf: json: no text in field 'body' (it has text, id); set text: in the corpus"


def test_a_source_is_known_by_its_files_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    corpus = Corpus(files="a.txt")
    before = source_of(corpus, tmp_path)
    assert source_of(corpus, tmp_path) == before
    (tmp_path / "a.txt").write_text("three")
    assert source_of(corpus, tmp_path) != before


def test_a_documents_side_is_its_hash_alone_and_its_share_is_kept() -> None:
    documents = [f"document {number}" for number in range(20_000)]
    held = {document for document in documents if is_heldout(document, 0.05)}
    assert len(held) / len(documents) == pytest.approx(0.05, rel=0.1)
    assert held <= {document for document in documents if is_heldout(document, 0.1)}
