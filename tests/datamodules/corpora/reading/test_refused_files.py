"""Corpus files that cannot be read: each is refused in one sentence with the place and the cure, and nothing is left out."""

import bz2
import gzip
import lzma
import os
import shutil
import socket
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from retain.sweeps.base.errors import RetainError
from tests.datamodules.corpora.reading.test_odd_files import ONE, Files, array, arrow, lines, link, parquet, read, write


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(made := BytesIO(), "w") as archive:
        archive.writestr("a.jsonl", content)
    return made.getvalue()


def with_large_window(content: bytes) -> bytes:
    """Content as `zstd --long=28` writes what it reads from a pipe."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(content) + stream.flush()


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


REFUSED: dict[str, tuple[Files, dict[str, Any], list[str]]] = {
    # Encodings
    "latin-1 text": ({"a.txt": b"a\nMot\xf6r"}, {"files": "a.txt"}, ["a.txt, line 2: ", "0xf6 is not UTF-8", "iconv"]),
    "latin-1 records": (
        {"a.jsonl": ONE + b'{"text": "\xf6"}'},
        {},
        ["a.jsonl, line 2: ", "0xf6 is not UTF-8", "iconv"],
    ),
    "latin-1 in an array": ({"a.json": b'[{"text": "\xf6"}]'}, {"files": "a.json"}, ["a.json, line 1: ", "not UTF-8"]),
    "half an UTF-8 character": ({"a.txt": "é".encode()[:1]}, {"files": "a.txt"}, ["line 1", "0xc3 is not UTF-8"]),
    "UTF-16 text without a mark": ({"a.txt": "ab".encode("utf-16-le")}, {"files": "a.txt"}, ["holds a NUL", "iconv"]),
    "UTF-16 records without a mark": (
        {"a.jsonl": ONE.decode().encode("utf-16-le")},
        {},
        ["line 1: invalid JSON", "fix"],
    ),
    "half of an UTF-16 character": (
        {"a.txt": b"\xff\xfea\0b"},
        {"files": "a.txt"},
        ["a.txt: cannot be read", "repair"],
    ),
    "NULs after the text": ({"a.txt": b"a\nb\n\0\0"}, {"files": "a.txt"}, ["a.txt, line 3: ", "holds a NUL"]),
    "NULs after the records": ({"a.jsonl": ONE + b"\0\0\0"}, {}, ["a.jsonl, line 2: invalid JSON"]),
    # Values
    **{
        f"{kind} as text": ({"a.jsonl": lines(value)}, {}, [f"line 1: field 'text' is of type {kind}", "`text:`"])
        for kind, value in (("int", 5), ("float", 0.5), ("bool", True), ("list", ["a"]), ("dict", {"a": "b"}))
    },
    "messages as text": (
        {"a.jsonl": lines([{"role": "user", "content": "a"}], field="messages")},
        {"text": "messages"},
        [
            "line 1: field 'messages' is a list of messages",
            "write `messages: messages` in the corpus instead of `text:`",
        ],
    ),
    "messages in parquet": (
        {"a.parquet": parquet({"m": [[{"role": "user", "content": "a"}]]})},
        {"files": "a.parquet", "text": "m"},
        ["row 1: field 'm' is a list of messages"],
    ),
    "no such field": ({"a.jsonl": ONE}, {"text": "body"}, ["field 'body' not found (the fields are text)", "`text:`"]),
    "no such field of an object": (
        {"a.jsonl": lines({"x": "a"}, field="meta")},
        {"text": "meta.body"},
        ["field 'meta.body' not found (the fields are meta, meta.x)"],
    ),
    "nothing but nulls": (
        {"a.jsonl": lines(None, None) + b"null"},
        {},
        ["holds no text (skipped 3 records whose text is null)", "choose another source"],
    ),
    "nothing but empty records": ({"a.jsonl": b"{}"}, {}, ["holds no text (skipped 1 empty document)"]),
    "a field twice": ({"a.jsonl": ONE + b'{"text": "a", "text": "b"}'}, {}, ["line 2", "field 'text' appears twice"]),
    "a field twice in an array": (
        {"a.json": b'[{"a": 1, "a": 2}]'},
        {"files": "a.json"},
        ["record 1", "'a' appears twice"],
    ),
    **{
        f"{kind} as a record": ({"a.jsonl": ONE + text}, {}, [f"line 2: the record is a {kind}", "fix or remove"])
        for kind, text in (("list", b"[1]"), ("int", b"7"), ("str", b'"a"'))
    },
    **{
        f"invalid JSON: {text[:20].decode()}": (
            {"a.jsonl": ONE + text},
            {},
            ["a.jsonl, line 2: invalid JSON", "fix or remove"],
        )
        for text in (
            *(
                b"{'text': 'a'}",
                b'{"text": "a",}',
                b'{"text": "a"',
                b'{"text": "a\tb"}',
                b'{"text": "a"} {"text": "b"}',
            ),
            *(b"text", b'{"x": ' + b"1" * 5000 + b"}", b"[" * 100_000),
        )
    },
    "an array that is cut": ({"a.json": array("a", "b")[:-1]}, {"files": "a.json"}, ["record 3", "array does not end"]),
    "an array cut in a record": (
        {"a.json": array("a", "b")[:-4]},
        {"files": "a.json"},
        ["record 2: invalid JSON", "fix"],
    ),
    "records after an array": ({"a.json": array("a") + ONE}, {"files": "a.json"}, ["text after the end of the array"]),
    "an array of texts": (
        {"a.json": b'["a"]'},
        {"files": "a.json"},
        ["a.json, record 1: the record is a str", "object"],
    ),
    "records inside an object": (
        {"a.json": b'{"data": ' + array("a") + b"}"},
        {"files": "a.json"},
        ["record 1: field 'text' not found (the fields are data)"],
    ),
    "a table by columns": ({"a.json": b'{"text": {"0": "a"}}'}, {"files": "a.json"}, ["field 'text' is of type dict"]),
    # Compression and parquet
    **{
        f"{kind} {name}": (
            {f"a.jsonl.{name}": content},
            {"files": f"a.jsonl.{name}"},
            ["cannot be read", "repair the file"],
        )
        for name, whole in (
            ("gz", gzip.compress(ONE * 99)),
            ("zst", zstandard.compress(ONE * 99)),
            ("bz2", bz2.compress(ONE * 99)),
        )
        for kind, content in (
            ("cut", whole[:-9]),
            ("empty", b""),
            ("plain", ONE),
            ("garbage after", whole + b"garbage"),
        )
    },
    "a large zstd window": (
        {"a.jsonl.zst": with_large_window(ONE)},
        {"files": "a.jsonl.zst"},
        ["a.jsonl.zst: cannot be read (its zstd window is larger than 128 MiB)", "zstd -d --long=31"],
    ),
    "xz named jsonl": ({"a.jsonl": lzma.compress(ONE)}, {}, ["a.jsonl: cannot be read (it is an xz archive)", "xz -d"]),
    "zip named jsonl": ({"a.jsonl": zipped(ONE)}, {}, ["it is a zip archive", "unzip"]),
    "parquet named jsonl": ({"a.jsonl": parquet({"text": ["a"]})}, {}, ["it is a parquet file", ".parquet"]),
    **{
        f"parquet: {kind}": ({"a.parquet": content}, {"files": "a.parquet"}, ["a.parquet", *words])
        for kind, content, *words in (
            ("other content", ONE, "cannot be read", "repair"),
            ("empty", b"", "cannot be read", "repair"),
            ("cut", parquet({"text": ["a"]})[:-9], "cannot be read", "repair"),
            ("a column twice", parquet([["a"], ["b"]], "text", "text"), "the column 'text' appears twice"),
            ("numbers", parquet({"text": [1]}), "row 1: field 'text' is of type int"),
            ("bytes", parquet({"text": [b"a"]}), "row 1: field 'text' is of type bytes"),
            ("texts", parquet({"text": [["a"]]}), "row 1: field 'text' is of type list"),
            ("no rows, no column", parquet({"body": pyarrow.array([], pyarrow.string())}), "field 'text' not found"),
        )
    },
    "Arrow named jsonl": ({"a.jsonl": arrow({"text": ["a"]})}, {}, ["it is an Arrow file", ".arrow"]),
    **{
        f"arrow: {kind}": ({"a.arrow": content}, {"files": "a.arrow"}, ["a.arrow", *words])
        for kind, content, *words in (
            ("other content", ONE, "cannot be read", "repair"),
            ("empty", b"", "cannot be read", "repair"),
            ("a cut file", arrow({"text": ["a"]})[:-9], "cannot be read", "repair"),
            ("a cut stream", arrow({"text": ["a", "b"]}, stream=True)[:-99], "cannot be read", "repair"),
            ("numbers", arrow({"text": [1]}), "row 1: field 'text' is of type int"),
            ("no column", arrow({"body": ["a"]}), "field 'text' not found (the fields are body)"),
        )
    },
    **{
        f"csv: {kind}": ({"a.csv": content}, {"files": "a.csv"}, words)
        for kind, content, *words in (
            (
                "no column",
                b"id,body\n1,a\n",
                "a.csv, line 2: field 'text' not found (the fields are id, body)",
                "`text:`",
            ),
            ("more values", b"id,text\n1,a\n2,b, c\n", "a.csv, line 3: found 3 values, expected 2", "in quotes"),
            ("fewer values", b'id,text\n1,"a\nb"\n2\n', "a.csv, line 4: found 1 value, expected 2", "in quotes"),
            ("an open quote", b'text\na\n"b\nc\n', "a.csv, line 3: invalid csv (unexpected end of data)"),
            ("a quote inside", b'text\n"a" b\n', "a.csv, line 2: invalid csv", "double the quotes"),
            ("a column twice", b"text,text\na,b\n", "the column 'text' appears twice"),
            ("latin-1", b"text\nMot\xf6r\n", "a.csv, line 2: ", "0xf6 is not UTF-8", "iconv"),
            ("UTF-16 without a mark", "text\na\n".encode("utf-16-le"), "a.csv, line 1: ", "holds a NUL"),
            ("a header alone", b"id,text\n", "holds no text"),
        )
    },
    # Files that are none
    **{
        f"the name {name}": (
            {name: ONE},
            {"files": name},
            [f"{name} has an unknown suffix", "rename", ".jsonl", "`hf:`"],
        )
        for name in (
            "a.xlsx",
            "a.tar.gz",
            "a.zip",
            "a.jsonl.xz",
            "a.jsonl.bak",
            "a.jsonl~",
            "data",
            "a.gz",
        )
    },
    "a read-me beside records": (
        {"in/a.jsonl": ONE, "in/README.md": b"a"},
        {"files": "in"},
        ["README.md", "a.jsonl", "pattern"],
    ),
    "a licence beside records": ({"in/a.jsonl": ONE, "in/LICENSE": b"a"}, {"files": "in"}, ["LICENSE", "pattern"]),
    "Spark's marker": ({"in/part-0.jsonl": ONE, "in/_SUCCESS": b""}, {"files": "in"}, ["_SUCCESS", "pattern"]),
    "a link to nothing": ({"a.jsonl": link("nowhere")}, {}, ["a.jsonl is a link to nothing", "repair or remove"]),
    "a link to nothing in a folder": (
        {"in/a.jsonl": ONE, "in/b": link("no")},
        {"files": "in"},
        ["in/b is a link to nothing"],
    ),
    "a link to itself": ({"a.jsonl": link("a.jsonl")}, {}, ["a.jsonl is a link to nothing"]),
    "a pipe": ({"a.jsonl": os.mkfifo}, {}, ["a.jsonl is a pipe, a socket or a device", "write its content to a file"]),
    "a pipe in a folder": ({"in/a.jsonl": ONE, "in/b.jsonl": os.mkfifo}, {"files": "in"}, ["in/b.jsonl is a pipe"]),
    "a socket": ({"a.jsonl": bound_socket}, {}, ["a.jsonl is a pipe, a socket or a device"]),
    "a device": ({}, {"files": "/dev/null"}, ["/dev/null is a pipe, a socket or a device"]),
    # Nothing to read
    **{
        f"{kind}": (files, fields, ["holds no text"])
        for kind, files, fields in (
            ("an empty file", {"a.jsonl": b""}, {}),
            ("blank lines", {"a.jsonl": b"\n \n\r\n"}, {}),
            ("blank text", {"a.txt": b" \n\f"}, {"files": "a.txt"}),
            ("empty texts", {"a.jsonl": lines("", " ")}, {}),
            ("an empty array", {"a.json": b"[]"}, {"files": "a.json"}),
            ("only a byte-order mark", {"a.txt": b"\xef\xbb\xbf"}, {"files": "a.txt"}),
        )
    },
    **{
        f"no file: {files!r:.40}": (
            {"in/a.jsonl": ONE, "empty": os.mkdir, "hid/.a.jsonl": ONE},
            {"files": files},
            [word, ";"],
        )
        for files, word in (
            ("b.jsonl", "no file matches b.jsonl"),
            ("*.parquet", "no file matches *.parquet"),
            ("in/a.jsonl/b", "no file matches in/a.jsonl/b"),
            ("in/*/b*", "no file matches in/*/b*"),
            ("empty", "no file matches empty"),
            ("hid", "but hidden ones, such as .a.jsonl; write a pattern that names them"),
            ("a\0b", "is not a path"),
            ("~nobody-of-this-name/a.jsonl", "~nobody-of-this-name has no home folder"),
            ("$NO_SUCH/a.jsonl", "the variable $NO_SUCH is not set"),
            ("${NO_SUCH}/a.jsonl", "the variable ${NO_SUCH} is not set"),
        )
    },
    "a separator that is nowhere": (
        {"a.txt": b"a b"},
        {"files": "a.txt", "separator": "--"},
        ["'--' is in none", "remove"],
    ),
    "a separator with a literal escape": (
        {"a.txt": b"a\n\nb"},
        {"files": "a.txt", "separator": r"\n\n"},
        ["is in none of the files", "double quotes"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_with_the_place_and_the_cure(case: str, tmp_path: Path) -> None:
    files, fields, words = REFUSED[case]
    write(tmp_path, files)
    with pytest.raises(RetainError) as refused:
        read(tmp_path, **{"files": "a.jsonl"} | fields)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@contextmanager
def not_root() -> Iterator[None]:
    """Nothing is unreadable to root."""
    if os.geteuid() == 0:
        os.seteuid(65_534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("closed", ["in/a.jsonl", "in/deep", "in"])
@pytest.mark.parametrize("files", ["in", "in/**/*.jsonl", "in/*", "in/a.jsonl"])
def test_nothing_is_left_out_because_it_is_unreadable(closed: str, files: str) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # others may enter it
    try:
        write(folder, {"in/a.jsonl": ONE, "in/deep/b.jsonl": ONE})
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        (folder / closed).chmod(0)
        with not_root():
            if (closed, files) == ("in/deep", "in/a.jsonl"):
                assert read(folder, files=files) == ["one"]
                return
            with pytest.raises(RetainError, match=r"cannot be read .*Permission denied.*make it readable"):
                read(folder, files=files)
    finally:
        for path in (folder, folder / "in", folder / "in/deep"):
            path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b"[", b"]", b"{", b"}", b'"text"', b":", b",", b'"a"', b"null", b"\n", b"\xff", b"1"])
        ).map(b"".join),
    ),
    name=st.sampled_from(
        ["a.txt", "a.jsonl", "a.json", "a.csv", "a.arrow", "a.parquet", "a.jsonl.gz", "a.json.zst", "a.txt.bz2"]
    ),
    compress=st.sampled_from([bytes, gzip.compress, zstandard.compress, bz2.compress]),
    separator=st.sampled_from([None, "\n"]),
)
def test_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    name: str,
    compress: Callable[[bytes], bytes],
    separator: str | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(compress(content))
    try:
        assert read(path.parent, files=name, separator=separator)
    except RetainError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
