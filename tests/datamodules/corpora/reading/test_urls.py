"""Corpora at URLs, read from real servers of this machine."""

import functools
import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from retain.datamodules.corpora.find import absolute, find_sources
from retain.datamodules.corpora.sources import source_identity
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.corpora import Corpus
from tests.datamodules.corpora.reading.test_odd_files import array, arrow, lines, parquet, read, write
from tests.datamodules.servers import running

FILES = {
    "in/a.jsonl": lines("one"),
    "in/b.JSONL.gz": gzip.compress(lines("two")),
    "in/._a.jsonl": b"\0",
    "in/.ipynb_checkpoints/a.jsonl": lines("old"),
    "c.csv": b"id,text\r\n1,three\r\n",
    "d.parquet": parquet({"text": ["four"]}),
    "e.arrow": arrow({"text": ["five"]}),
    "f.json": array("six"),
    "g.txt": "\ufeffseven".encode(),
}
DOCUMENTS = {"c.csv": "three", "d.parquet": "four", "e.arrow": "five", "f.json": "six", "g.txt": "seven"}


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=str(folder)))
    with running(server) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def in_memory(folder: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/bucket/", recursive=True)
    try:
        yield "memory://bucket"
    finally:
        memory.rm("/bucket", recursive=True)


@contextmanager
def as_file_url(folder: Path) -> Iterator[str]:
    yield folder.as_uri()


@pytest.mark.parametrize("places", [serving, in_memory, as_file_url])
def test_files_at_urls_are_read_as_those_on_disk(places: Any, tmp_path: Path) -> None:
    write(tmp_path, {**FILES})
    with places(tmp_path) as url:
        for name, document in DOCUMENTS.items():
            assert read(tmp_path, files=f"{url}/{name}") == [document]
        assert read(tmp_path, files=f"{url}/in/*.jsonl") == ["one"]
        assert read(tmp_path, files=[f"{url}/in/b.JSONL.gz", f"{url}/in/a.jsonl"]) == ["one", "two"]
        assert read(tmp_path, files=[f"{url}/f.json", "in/a.jsonl"]) == (
            ["six", "one"] if places is as_file_url else ["one", "six"]
        )


@pytest.mark.parametrize("places", [serving, in_memory, as_file_url])
def test_a_folder_at_a_url_is_read_without_hidden_files(places: Any, tmp_path: Path) -> None:
    write(tmp_path, {name: content for name, content in FILES.items() if name.startswith("in/")})
    hidden: list[str] = []
    with places(tmp_path) as url:
        assert read(tmp_path, files=f"{url}/in/") == ["one", "two"]
        find_sources(f"{url}/in/", tmp_path, hidden)
        assert "._a.jsonl" in hidden
        assert read(tmp_path, files=f"{url}/in/.ipynb_checkpoints/*.jsonl") == ["old"]


def test_variables_are_replaced_in_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {**FILES})
    with serving(tmp_path) as url:
        monkeypatch.setenv("DATA", url)
        assert read(tmp_path, files="$DATA/in/*.jsonl") == ["one"]
        assert absolute("$DATA/in/*.jsonl", tmp_path) == "$DATA/in/*.jsonl"
    with pytest.raises(StudyError, match=r"files: https://x/\$NO_SUCH: the variable \$NO_SUCH is not set"):
        read(tmp_path, files="https://x/$NO_SUCH")


def test_a_long_signed_url_is_a_file_of_its_suffix(tmp_path: Path) -> None:
    write(tmp_path, {**FILES})
    with serving(tmp_path) as url:
        assert read(tmp_path, files=f"{url}/in/b.JSONL.gz?signature={'x' * 300}") == ["two"]


@pytest.mark.parametrize("places", [serving, in_memory])
def test_a_changed_file_at_a_url_is_another_source(places: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines("one"))
    os.utime(tmp_path / "a.jsonl", (1, 1))
    with places(tmp_path) as url:
        corpus = Corpus(files=f"{url}/a.jsonl")
        before = source_identity(corpus, tmp_path)
        assert before["files"][0][:2] == [f"{url.replace('memory://', 'memory:///')}/a.jsonl", len(lines("one"))]
        assert source_identity(corpus, tmp_path) == before
        (tmp_path / "a.jsonl").write_bytes(lines("two"))
        if places is in_memory:
            fsspec.filesystem("memory").put(str(tmp_path / "a.jsonl"), "/bucket/a.jsonl")
        assert source_identity(corpus, tmp_path) != before


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ("s3://bucket/a.jsonl", MissingResourceError, "run `pip install 'retain-lm[s3]'`"),
        ("gs://bucket/*.jsonl", MissingResourceError, "run `pip install 'retain-lm[gs]'`"),
        (
            "abfs://bucket/a.jsonl",
            MissingResourceError,
            "needs a package that is not installed; install it (Install adlfs",
        ),
        ("nosuch://bucket/a.jsonl", StudyError, "nothing reads nosuch://; name files by a path, or by s3://"),
        ("zip://a.jsonl::http://127.0.0.1/a.zip", StudyError, "is a chain of URLs; unpack the archive"),
        (
            "http://127.0.0.1:1/a.jsonl",
            MissingResourceError,
            "cannot be read (no connection to the server: Connection ref",
        ),
        ("memory://nowhere/*.jsonl", MissingResourceError, "no file matches memory://nowhere/*.jsonl; correct the URL"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_in_one_sentence(
    files: str, kind: type[RetainError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as refused:
        read(tmp_path, files=files)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bad_input_at_a_url_is_named_by_url_and_line(tmp_path: Path) -> None:
    write(tmp_path, {"a.jsonl": lines("one") + b"{", "b.docx": b"", "c.txt": b"Mot\xf6r"})
    with serving(tmp_path) as url:
        for name, words in (
            ("a.jsonl", "/a.jsonl, line 2: invalid JSON"),
            ("b.docx", "files: b.docx has an unknown suffix"),
            ("c.txt", "/c.txt, line 1: cannot be read (byte 0xf6 is not UTF-8)"),
            ("d.jsonl", "no file matches"),
        ):
            with pytest.raises(RetainError) as refused:
                read(tmp_path, files=f"{url}/{name}")
            assert words in str(refused.value)
