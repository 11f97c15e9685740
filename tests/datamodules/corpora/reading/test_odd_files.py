"""Corpus files as people have them: each is read as its owner means it."""

import bz2
import gzip
import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.reading.files import text_documents
from retain.datamodules.corpora.sources import source_identity
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.tree.keys import canonical

Content = bytes | Callable[[Path], object]
Files = dict[str, Content]


def read(folder: Path, **corpus: Any) -> list[str]:
    """The documents of a corpus; its identity must be one that the store can note."""
    made = Corpus(**corpus)
    canonical(source_identity(made, folder))
    return list(read_documents(made, folder))


def lines(*texts: Any, field: str = "text", end: str = "\n") -> bytes:
    return "".join(json.dumps({field: text}, ensure_ascii=False) + end for text in texts).encode()


def array(*texts: Any, **form: Any) -> bytes:
    return json.dumps([{"text": text} for text in texts], **form).encode()


def parquet(columns: Any, *names: str) -> bytes:
    table = pyarrow.table(columns) if not names else pyarrow.Table.from_arrays(columns, list(names))
    pyarrow.parquet.write_table(table, made := BytesIO())
    return made.getvalue()


def arrow(columns: Any, stream: bool = False) -> bytes:
    table = pyarrow.table(columns)
    write_to = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with write_to(made := BytesIO(), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return made.getvalue()


def link(target: str) -> Content:
    return lambda path: path.symlink_to(target)


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


ONE = lines("one")
LONG = "word " * 700_000
ODD = os.fsdecode(b"caf\xe9.jsonl")

READ: dict[str, tuple[Files, dict[str, Any], list[str]]] = {
    # Encodings and line ends
    "a byte-order mark before the first record": ({"a.jsonl": b"\xef\xbb\xbf" + ONE}, {}, ["one"]),
    "a byte-order mark before text": ({"a.txt": "\ufeffone".encode()}, {"files": "a.txt"}, ["one"]),
    "a byte-order mark inside joined files": ({"a.jsonl": ONE + b"\xef\xbb\xbf" + ONE}, {}, ["one", "one"]),
    "a byte-order mark before an array": ({"a.json": b"\xef\xbb\xbf" + array("é")}, {"files": "a.json"}, ["é"]),
    "UTF-16 records": ({"a.jsonl": lines("é", "b").decode().encode("utf-16")}, {}, ["é", "b"]),
    "big-endian UTF-16 text": ({"a.txt": "\ufeffé".encode("utf-16-be")}, {"files": "a.txt"}, ["é"]),
    "UTF-32 text": ({"a.txt": "é".encode("utf-32")}, {"files": "a.txt"}, ["é"]),
    "a compressed UTF-16 file": ({"a.txt.gz": gzip.compress("é".encode("utf-16"))}, {"files": "a.txt.gz"}, ["é"]),
    "CRLF records": ({"a.jsonl": lines("a", "b", end="\r\n")}, {}, ["a", "b"]),
    "CR records": ({"a.jsonl": lines("a", "b", end="\r")}, {}, ["a", "b"]),
    "CRLF text, its separator as written": (
        {"a.txt": b"a\r\nb\r\n\r\nc"},
        {"files": "a.txt", "separator": "\r\n\r\n"},
        ["a\nb", "c"],
    ),
    "CRLF text, a plain separator": ({"a.txt": b"a\r\n\r\nc"}, {"files": "a.txt", "separator": "\n\n"}, ["a", "c"]),
    "next-line and line separators in a record": ({"a.jsonl": lines("a\x85b\u2028c")}, {}, ["a\x85b\u2028c"]),
    "form feeds between documents": ({"a.txt": b"a\fb"}, {"files": "a.txt", "separator": "\f"}, ["a", "b"]),
    "an escaped pair of surrogates": ({"a.jsonl": b'{"text": "\\ud83d\\ude00"}'}, {}, ["😀"]),
    "an escaped NUL": ({"a.jsonl": b'{"text": "a\\u0000b"}'}, {}, ["a\0b"]),
    "no line end at the end": ({"a.jsonl": lines("a", "b")[:-1]}, {}, ["a", "b"]),
    "blank lines and blanks around records": ({"a.jsonl": b"\n  \n " + ONE + b"\t\n"}, {}, ["one"]),
    # Compression, by name or by content
    **{
        f"{name} by its name": ({f"a.jsonl.{name}": pack(ONE)}, {"files": f"a.jsonl.{name}"}, ["one"])
        for name, pack in (("gz", gzip.compress), ("zst", zstandard.compress), ("bz2", bz2.compress))
    },
    **{
        f"{name} named jsonl": ({"a.jsonl": pack(ONE) + pack(ONE)}, {}, ["one", "one"])
        for name, pack in (("gz", gzip.compress), ("zst", zstandard.compress), ("bz2", bz2.compress))
    },
    "text that begins like bzip2": ({"a.txt": b"BZh9 is a word"}, {"files": "a.txt"}, ["BZh9 is a word"]),
    # Suffixes
    "a suffix in capitals": ({"A.JSONL": ONE}, {"files": "A.JSONL"}, ["one"]),
    "two suffixes in capitals": ({"A.JSONL.GZ": gzip.compress(ONE)}, {"files": "A.JSONL.GZ"}, ["one"]),
    "a mixed suffix": ({"a.Txt": b"one"}, {"files": "a.Txt"}, ["one"]),
    "parquet in capitals": ({"A.PARQUET": parquet({"text": ["one"]})}, {"files": "A.PARQUET"}, ["one"]),
    # json
    "an array of records": ({"a.json": array("a", "b")}, {"files": "a.json"}, ["a", "b"]),
    "an indented array": ({"a.json": array("a", "b", indent=2)}, {"files": "a.json"}, ["a", "b"]),
    "one object": ({"a.json": ONE}, {"files": "a.json"}, ["one"]),
    "records on lines, named json": ({"a.json": lines("a", "b")}, {"files": "a.json"}, ["a", "b"]),
    "indented objects": ({"a.json": b'{\n"text": "a"\n}\n{\n"text": "b"\n}'}, {"files": "a.json"}, ["a", "b"]),
    "an array named jsonl": ({"a.jsonl": array("a", "b")}, {}, ["a", "b"]),
    "an indented array named jsonl": ({"a.jsonl": array("a", "b", indent=1)}, {}, ["a", "b"]),
    "an empty array beside records": ({"a.json": b"[]", "b.json": ONE}, {"files": "*.json"}, ["one"]),
    "an array of several blocks": ({"a.json": array(LONG, "b")}, {"files": "a.json"}, [LONG, "b"]),
    "a compressed array": ({"a.json.gz": gzip.compress(array("a"))}, {"files": "a.json.gz"}, ["a"]),
    # Fields
    "a field of an object": ({"a.jsonl": lines({"body": "a"}, field="meta")}, {"text": "meta.body"}, ["a"]),
    "a field two objects down": ({"a.jsonl": lines({"b": {"c": "a"}}, field="m")}, {"text": "m.b.c"}, ["a"]),
    "a field with a dot in its name": ({"a.jsonl": lines("a", field="meta.body")}, {"text": "meta.body"}, ["a"]),
    "a dotted name before an object": (
        {"a.jsonl": b'{"m.b": "a", "m": {"b": "other"}}'},
        {"text": "m.b"},
        ["a"],
    ),
    "a field of a parquet struct": (
        {"a.parquet": parquet({"meta": [{"body": "a", "n": 1}]})},
        {"files": "a.parquet", "text": "meta.body"},
        ["a"],
    ),
    "a dotted parquet column": (
        {"a.parquet": parquet({"meta.body": ["a"]})},
        {"files": "a.parquet", "text": "meta.body"},
        ["a"],
    ),
    "large and dictionary strings": (
        {
            "a.parquet": parquet({"text": pyarrow.array(["a"], pyarrow.large_string())}),
            "b.parquet": parquet({"text": pyarrow.array(["b"]).dictionary_encode()}),
        },
        {"files": "*.parquet"},
        ["a", "b"],
    ),
    "null, NaN and lists in other fields": ({"a.jsonl": b'{"x": null, "y": NaN, "z": [1], "text": "a"}'}, {}, ["a"]),
    # csv
    **{
        f"csv, {kind}": ({"a.CSV": text.encode(encoding)}, {"files": "a.CSV"} | fields, documents)
        for kind, text, encoding, fields, documents in (
            ("plain", "id,text\n1,a\n2,b\n", "utf-8", {}, ["a", "b"]),
            ("a byte-order mark", "text\né\n", "utf-8-sig", {}, ["é"]),
            ("UTF-16", "text\né\n", "utf-16", {}, ["é"]),
            ("CRLF", "id,text\r\n1,a\r\n\r\n2,b\r\n", "utf-8", {}, ["a", "b"]),
            ("quoted line ends", 'text,id\r\n"a\r\n\r\nb",1\r\n"c",2', "utf-8", {}, ["a\n\nb", "c"]),
            ("quotes in quotes", 'text\n"a ""b"", c"\n', "utf-8", {}, ['a "b", c']),
            ("semicolons", "id;text\n1;a, b\n", "utf-8", {}, ["a, b"]),
            ("tabs", "id\ttext\n1\ta; b\n", "utf-8", {}, ["a; b"]),
            ("numbers", "text\n5\n", "utf-8", {}, ["5"]),
            ("a template", "q;a\nwhy;so\n", "utf-8", {"template": "{q}? {a}"}, ["why? so"]),
            ("a giant value", f'text\n"{LONG}"\n', "utf-8", {}, [LONG]),
            ("a dotted column", "meta.body\na\n", "utf-8", {"text": "meta.body"}, ["a"]),
        )
    },
    "tsv": ({"a.TSV": b"id\ttext\n1\ta, b\n"}, {"files": "a.TSV"}, ["a, b"]),
    "compressed csv": ({"a.csv.gz": gzip.compress(b"text\na\n")}, {"files": "a.csv.gz"}, ["a"]),
    # Arrow
    **{
        f"an Arrow {kind}": (
            {"a.arrow": arrow({"n": [1, 2], "text": ["a", "b"]}, stream)},
            {"files": "a.arrow"},
            ["a", "b"],
        )
        for kind, stream in (("file", False), ("stream", True))
    },
    "a field of an Arrow struct": (
        {"a.Arrow": arrow({"meta": [{"body": "a"}]})},
        {"files": "a.Arrow", "text": "meta.body"},
        ["a"],
    ),
    # Sizes
    "one giant line": ({"a.jsonl": lines(LONG)}, {}, [LONG]),
    "one giant document": ({"a.txt": LONG.encode()}, {"files": "a.txt"}, [LONG]),
    "a giant document between others": (
        {"a.txt": f"a--{LONG}--b".encode()},
        {"files": "a.txt", "separator": "--"},
        ["a", LONG, "b"],
    ),
    "separators that could overlap": ({"a.txt": b"baaac"}, {"files": "a.txt", "separator": "aa"}, ["b", "ac"]),
    "an empty file beside others": ({"in/a.jsonl": b"", "in/b.jsonl": ONE}, {"files": "in"}, ["one"]),
    "empty documents beside others": ({"a.jsonl": lines("", " \n", "one")}, {}, ["one"]),
    # Names and patterns
    "a name that is not UTF-8": ({ODD: ONE}, {"files": "*.jsonl"}, ["one"]),
    "a name with a line end": ({"a\nb.jsonl": ONE}, {"files": "*.jsonl"}, ["one"]),
    "a name with blanks and accents": ({" é ü.jsonl": ONE}, {"files": " é ü.jsonl"}, ["one"]),
    "a name like an option": ({"-x.jsonl": ONE}, {"files": "-x.jsonl"}, ["one"]),
    "a name with brackets": ({"a[1].jsonl": ONE}, {"files": "a[1].jsonl"}, ["one"]),
    "a folder with brackets": ({"run[1]/a.jsonl": ONE}, {"files": "run[1]/*.jsonl"}, ["one"]),
    "a name with a star": ({"a*.jsonl": ONE, "ab.jsonl": lines("b")}, {"files": "a*.jsonl"}, ["one"]),
    "a name with a dollar": ({"$x.jsonl": ONE}, {"files": "$x.jsonl"}, ["one"]),
    "a name with a tilde": ({"~x.jsonl": ONE}, {"files": "~x.jsonl"}, ["one"]),
    "a folder named like a file": ({"x.jsonl/part-0.jsonl": ONE}, {"files": "x.jsonl"}, ["one"]),
    "a pattern that matches a folder": ({"in1/a.jsonl": ONE}, {"files": "in*"}, ["one"]),
    "a list of characters": ({"a.jsonl": ONE, "c.jsonl": ONE}, {"files": "[ab].jsonl"}, ["one"]),
    "two patterns for one file": ({"a.jsonl": ONE}, {"files": ["a.jsonl", "*.jsonl"]}, ["one"]),
    "a home folder": ({"a.jsonl": ONE}, {"files": "~/a.jsonl"}, ["one"]),
    "a variable": ({"a.jsonl": ONE}, {"files": "$HOME/*.jsonl"}, ["one"]),
    "a variable in braces": ({"a.jsonl": ONE}, {"files": "${HOME}/a.jsonl"}, ["one"]),
    "a file above the study": ({"a.jsonl": ONE, "b/c": b""}, {"files": "b/../a.jsonl"}, ["one"]),
    # Links and hidden files
    "a link to a file": ({"in/a.jsonl": link("../b.jsonl"), "b.jsonl": ONE}, {"files": "in"}, ["one"]),
    "a link to a folder": ({"in/deep": link("../out"), "out/a.jsonl": ONE}, {"files": "in"}, ["one"]),
    "a link to a folder, by pattern": (
        {"in/d": link("../out"), "out/a.jsonl": ONE},
        {"files": "in/**/*.jsonl"},
        ["one"],
    ),
    "a link to the folder itself": ({"in/a.jsonl": ONE, "in/loop": link(".")}, {"files": "in"}, ["one"]),
    "a notebook's checkpoints": (
        {"in/a.jsonl": ONE, "in/.ipynb_checkpoints/a-checkpoint.jsonl": ONE},
        {"files": "in"},
        ["one"],
    ),
    "macOS's shadows of files": (
        {"in/a.jsonl": ONE, "in/._a.jsonl": b"\0\5\x16\7", "in/.DS_Store": b"\0"},
        {"files": "in/*"},
        ["one"],
    ),
    "a dangling hidden link": ({"in/a.jsonl": ONE, "in/.#a.jsonl": link("me@host.7")}, {"files": "in"}, ["one"]),
    "a hidden file by its name": ({".a.jsonl": ONE}, {"files": ".a.jsonl"}, ["one"]),
    "hidden files by a pattern": ({".a.jsonl": ONE}, {"files": ".*.jsonl"}, ["one"]),
}


@pytest.mark.parametrize("case", READ)
def test_a_file_is_read_as_its_owner_means_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, fields, documents = READ[case]
    write(tmp_path, files)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path, **{"files": "a.jsonl"} | fields) == documents


@given(st.text("ab\n", max_size=30), st.text("ab\n", min_size=1, max_size=3), st.integers(1, 4))
def test_a_separator_is_found_wherever_blocks_end(text: str, separator: str, block: int) -> None:
    blocks = [text[start : start + block] for start in range(0, len(text), block)]
    assert list(text_documents(blocks, separator)) == text.split(separator)
