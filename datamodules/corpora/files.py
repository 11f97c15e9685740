"""Corpora in files: plain text, jsonl and parquet, plain or compressed with gzip or zstd."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from retain.datamodules.corpora.templates import Template
from retain.sweeps.base.errors import MissingResourceError, StudyError

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".abc": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst")


def find_files(patterns: str | list[str], folder: Path) -> list[Path]:
    """The files that paths, folders and glob patterns name, sorted; relative ones start at `folder`.

    Raises MissingResourceError where a pattern names none.
    """
    found: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        base, relative = (Path(path.anchor), path.relative_to(path.anchor)) if path.is_absolute() else (folder, path)
        here = [base / relative] if (base / relative).exists() else list(base.glob(str(relative)))
        files = {file for entry in here for file in (entry.rglob("*") if entry.is_dir() else [entry]) if file.is_file()}
        if not files:
            raise MissingResourceError(f"files: {pattern} names no file (looked from {folder}); correct the path")
        found |= files
    return sorted(found)


def file_format(path: Path) -> str:
    """text, jsonl or parquet, from a name such as part-0.jsonl.zst. Raises StudyError."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise StudyError(
            f"files: {path.name} has no known ending ({', '.join(FORMATS)}, each also with .gz or .zst); rename it, "
            "or name its format with hf: (json, csv, arrow, ...)"
        )
    return FORMATS[suffixes[-1]]


def read_files(paths: list[Path], template: Template, separator: str | None) -> Iterator[str]:
    """The documents of files, in order. Raises StudyError where a record lacks a field or a file is damaged."""
    readers = {
        "text": lambda path: _text_documents(path, separator),
        "jsonl": lambda path: _jsonl_documents(path, template),
        "parquet": lambda path: _parquet_documents(path, template),
    }
    for path in paths:
        try:
            yield from readers[file_format(path)](path)
        # ValueError is also what pyarrow and UTF-8 raise.
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise StudyError(
                f"{path}: cannot be read ({error}); mend it, or take it out of the corpus's files:"
            ) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    if path.suffix == ".zst":
        import pyarrow

        # The reader of `zstandard` takes a file that breaks off for a complete one.
        return io.TextIOWrapper(pyarrow.input_stream(path, compression="zstd"), encoding="utf-8")
    return path.open(encoding="utf-8")


def _text_documents(path: Path, separator: str | None) -> Iterator[str]:
    with _open(path) as stream:
        if separator is None:
            yield stream.read()
            return
        rest = ""
        while block := stream.read(1 << 20):
            *whole, rest = (rest + block).split(separator)
            yield from whole
        yield rest


def _jsonl_documents(path: Path, template: Template) -> Iterator[str]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise StudyError(f"{path}, line {number}: not JSON ({error}); mend or drop the line") from None
                yield template.join(record, f"{path}, line {number}")


def _parquet_documents(path: Path, template: Template) -> Iterator[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    template.join(dict.fromkeys(table.schema_arrow.names, ""), str(path))  # the columns are there
    for batch in table.iter_batches(batch_size=1024, columns=template.fields):
        for record in batch.to_pylist():
            yield template.join(record, str(path))
