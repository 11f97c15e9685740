"""Read corpora from files: text, jsonl and parquet, also compressed with gzip or zstd."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from retain.datamodules.corpora.templates import Template
from retain.sweeps.base.errors import MissingResourceError, StudyError

COMPRESSIONS = (".gz", ".zst")


def find_files(patterns: str | list[str], folder: Path) -> list[Path]:
    """Return the files that match paths, folders or glob patterns, sorted; relative patterns start at `folder`.

    Raises MissingResourceError if a pattern matches no file.
    """
    found: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        base, relative = (Path(path.anchor), path.relative_to(path.anchor)) if path.is_absolute() else (folder, path)
        here = [base / relative] if (base / relative).exists() else list(base.glob(str(relative)))
        files = {file for entry in here for file in (entry.rglob("*") if entry.is_dir() else [entry]) if file.is_file()}
        if not files:
            raise MissingResourceError(f"files: no file matches {pattern} (in {folder}); correct the path")
        found |= files
    return sorted(found)


def read_files(paths: list[Path], template: Template, separator: str | None) -> Iterator[str]:
    """Yield the documents of files, in order.

    Raises StudyError if a file has an unknown suffix or is damaged, or if a record lacks a field.
    """
    for path in paths:
        # The suffix of part-0.jsonl.zst is .jsonl.
        suffix = next((suffix for suffix in reversed(path.suffixes) if suffix not in COMPRESSIONS), "")
        if suffix not in READERS:
            raise StudyError(
                f"files: {path.name} has an unknown suffix; rename the file to a known one ({', '.join(READERS)}, each may "
                "be followed by .gz or .zst), or give the file's format as `hf:` (json, csv, arrow, ...)"
            )
        try:
            yield from READERS[suffix](path, template, separator)
        # pyarrow and the UTF-8 decoder raise subclasses of ValueError.
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise StudyError(
                f"{path}: cannot be read ({error}); repair the file, or remove it from the corpus's `files:`"
            ) from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    if path.suffix == ".zst":
        import pyarrow

        # Not `zstandard`: its reader accepts a truncated file as complete.
        return io.TextIOWrapper(pyarrow.input_stream(path, compression="zstd"), encoding="utf-8")
    return path.open(encoding="utf-8")


def _text_documents(path: Path, template: Template, separator: str | None) -> Iterator[str]:
    with _open(path) as stream:
        if separator is None:
            yield stream.read()
            return
        rest = ""
        while block := stream.read(1 << 20):
            *whole, rest = (rest + block).split(separator)
            yield from whole
        yield rest


def _jsonl_documents(path: Path, template: Template, separator: str | None) -> Iterator[str]:
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise StudyError(f"{path}, line {number}: invalid JSON ({error}); fix or remove the line") from None
                yield template.join(record, f"{path}, line {number}")


def _parquet_documents(path: Path, template: Template, separator: str | None) -> Iterator[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    # Fails before any row is read if a column is missing.
    template.join(dict.fromkeys(table.schema_arrow.names, ""), str(path))
    number = 0
    for batch in table.iter_batches(batch_size=1024, columns=template.fields):
        for record in batch.to_pylist():
            number += 1
            yield template.join(record, f"{path}, row {number}")


READERS: dict[str, Callable[[Path, Template, str | None], Iterator[str]]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".abc"), _text_documents),
    **dict.fromkeys((".jsonl", ".ndjson"), _jsonl_documents),
    ".parquet": _parquet_documents,
}
"""The function that reads the documents of a file, by the file's suffix."""
