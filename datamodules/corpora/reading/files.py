"""Read corpora from files: text, jsonl, json and csv, also compressed with gzip, zstd or bzip2, and parquet and arrow."""

import contextlib
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import BinaryIO

from retain.datamodules.corpora.find import SourceFile, shown
from retain.datamodules.corpora.reading.json_records import json_records, jsonl_records
from retain.datamodules.corpora.reading.opened import COMPRESSIONS, checked_blocks, checked_lines, open_text
from retain.datamodules.corpora.reading.remote import RemoteFile
from retain.datamodules.corpora.reading.tables import arrow_records, csv_records, parquet_records
from retain.datamodules.corpora.reading.unreachable import unreachable
from retain.datamodules.corpora.responses.marked import Document
from retain.datamodules.corpora.responses.records import RecordReader, document_of
from retain.sweeps.base.errors import RetainError, StudyError

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".abc": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
LARGE_WINDOW = "Frame requires too much memory"
"""What libzstd says of data with a larger window than the 128 MiB that it takes."""


def file_format(path: SourceFile) -> str:
    """Return text, jsonl, json, csv, parquet or arrow, by a file's suffixes (part-0.jsonl.zst is jsonl).

    Raises StudyError if the suffix is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise StudyError(
            f"files: {shown(path.name)} has an unknown suffix; rename the file to a known one ({', '.join(FORMATS)}, each may "
            "be followed by .gz, .zst or .bz2), name the others with a pattern, or give the file's format as `hf:` (xml, "
            "webdataset, ...)"
        )
    return FORMATS[suffixes[-1]]


def check_formats(paths: Sequence[SourceFile]) -> dict[SourceFile, str]:
    """Return the format of each file. Raises StudyError if one is unknown, or the files hold records and plain text."""
    formats = {path: file_format(path) for path in paths}
    plain = [path for path in paths if formats[path] == "text"]
    if plain and len(plain) < len(paths):
        records = next(path for path in paths if path not in plain)
        raise StudyError(
            f"files: found plain text ({shown(plain[0].name)}) and records ({shown(records.name)}), expected one of them; "
            "name the files with a pattern such as data/*.jsonl"
        )
    return formats


def check_separator(separator: str | None, pieces: int, files: int) -> None:
    """Raise StudyError if files of plain text have no more pieces than files, although a separator is given."""
    if separator is not None and pieces == files:
        raise StudyError(
            f"separator: {separator!r} is in none of the files; correct it (in YAML, escapes such as \\n need double "
            "quotes), or remove it to make each file one document"
        )


def read_files(paths: Sequence[SourceFile], reader: RecordReader, separator: str | None) -> Iterator[Document | None]:
    """Yield the documents of files, in order; None for a record whose text is null.

    Raises StudyError if a record lacks a field, a file is damaged, or the files hold records and plain text;
    MissingResourceError if a URL cannot be read.
    """
    formats = check_formats(paths)
    plain = [path for path in paths if formats[path] == "text"]
    pieces = 0
    for path in paths:
        with naming_file(path):
            for document in documents_of(path, formats[path], reader, separator):
                pieces += 1
                yield document
    if plain:
        check_separator(separator, pieces, len(plain))


@contextlib.contextmanager
def naming_file(path: SourceFile) -> Iterator[None]:
    """Raise StudyError that names a file if it cannot be read in the block, MissingResourceError for a URL."""
    try:
        yield
    # The UTF-16 decoder and pyarrow raise subclasses of ValueError.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if LARGE_WINDOW in str(error):
            raise StudyError(
                f"{shown(path)}: cannot be read (its zstd window is larger than 128 MiB); decompress it with `zstd -d "
                "--long=31`, or compress it with `--long=27` at most"
            ) from error
        if isinstance(error, PermissionError):
            cure = "make it readable"
        else:
            cure = "repair the file, or remove it from the corpus's `files:`"
        if isinstance(path, RemoteFile) and isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise unreachable(path.url, error) from error
        raise StudyError(f"{shown(path)}: cannot be read ({error}); {cure}") from error
    except Exception as error:
        if isinstance(path, RemoteFile) and not isinstance(error, RetainError):
            raise unreachable(path.url, error) from error
        raise


def documents_of(path: SourceFile, form: str, reader: RecordReader, separator: str | None) -> Iterator[Document | None]:
    """Yield the documents of a file by its format, as `read_files` does; errors as they come, see `naming_file`."""
    name = shown(path)
    if form in ("parquet", "arrow"):
        with _seekable(path) as file:
            if form == "parquet":
                yield from joined(parquet_records(file, name, reader.fields, reader.check), reader)
            else:
                yield from joined(arrow_records(file, name, reader.check), reader)
    else:
        with open_text(path) as stream:
            if form == "text":
                yield from text_documents(checked_blocks(stream, name), separator)
            elif form == "csv":
                yield from joined(csv_records(checked_lines(stream, name), name, reader.fields), reader)
            else:
                records = json_records(stream, name) if form == "json" else jsonl_records(stream, name)
                yield from joined(records, reader)


def _seekable(path: SourceFile) -> AbstractContextManager[BinaryIO]:
    """Open a file for reading in any order."""
    return path.seekable() if isinstance(path, RemoteFile) else path.open("rb")


def joined(records: Iterable[tuple[str, object]], reader: RecordReader) -> Iterator[Document | None]:
    """Yield the document of each record, given with its place; None for a record whose text is null."""
    for where, record in records:
        yield document_of(reader, record, where)


def text_documents(blocks: Iterable[str], separator: str | None) -> Iterator[str]:
    """Yield what is between separators; each block is searched once, however long a document is."""
    if separator is None:
        yield "".join(blocks)
        return
    separator = separator.replace("\r\n", "\n").replace("\r", "\n")  # as the file is read
    begun: list[str] = []
    rest = ""  # the end of the unfinished document, in which a separator may begin
    for block in blocks:
        *whole, rest = (rest + block).split(separator)
        for piece in whole:
            yield "".join((*begun, piece))
            begun.clear()
        cut = max(0, len(rest) - len(separator) + 1)
        begun.append(rest[:cut])
        rest = rest[cut:]
    yield "".join((*begun, rest))
