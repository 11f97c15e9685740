"""Read corpora from files: text, jsonl, json and parquet, also compressed with gzip, zstd or bzip2."""

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from retain.datamodules.corpora.find import shown
from retain.datamodules.corpora.responses.marked import Document
from retain.datamodules.corpora.responses.records import RecordReader
from retain.sweeps.base.errors import StudyError

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".abc": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
CONTENTS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh91AY&SY": "bz2",
    b"\xfd7zXZ\0": "it is an xz archive); decompress it with `xz -d`",
    b"PK\3\4": "it is a zip archive); unpack it with `unzip`",
    b"PAR1": "it is a parquet file); let its name end with .parquet",
}
"""What the first bytes of a file say it is: a compression, or the end of an error message."""
ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLOCK = 1 << 20
"""Characters that are read at a time."""
BETWEEN_VALUES = re.compile(r"[\s\ufeff]*")


def file_format(path: Path) -> str:
    """Return text, jsonl, json or parquet, by a file's suffixes (part-0.jsonl.zst is jsonl).

    Raises StudyError if the suffix is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in FORMATS:
        raise StudyError(
            f"files: {shown(path.name)} has an unknown suffix; rename the file to a known one ({', '.join(FORMATS)}, each may "
            "be followed by .gz, .zst or .bz2), name the others with a pattern, or give the file's format as `hf:` (json, "
            "csv, arrow, ...)"
        )
    return FORMATS[suffixes[-1]]


def check_formats(paths: list[Path]) -> dict[Path, str]:
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


def read_files(paths: list[Path], reader: RecordReader, separator: str | None) -> Iterator[Document]:
    """Yield the documents of files, in order.

    Raises StudyError if a record lacks a field, a file is damaged, or the files hold records and plain text.
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
def naming_file(path: Path) -> Iterator[None]:
    """Raise StudyError that names a file if it cannot be read in the block."""
    try:
        yield
    # The UTF-16 decoder and pyarrow raise subclasses of ValueError.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, PermissionError):
            cure = "make it readable"
        else:
            cure = "repair the file, or remove it from the corpus's `files:`"
        raise StudyError(f"{shown(path)}: cannot be read ({error}); {cure}") from error


def documents_of(path: Path, form: str, reader: RecordReader, separator: str | None) -> Iterator[Document]:
    """Yield the documents of a file by its format; errors as they come, see `naming_file`."""
    if form == "parquet":
        yield from parquet_documents(path, reader)
        return
    name = shown(path)
    with _open(path) as stream:
        if form == "text":
            yield from text_documents(_checked_blocks(stream, name), separator)
        else:
            records = _json_records(stream, name) if form == "json" else jsonl_records(stream, name)
            for where, record in records:
                yield reader.join(record, where)


def _open(path: Path) -> TextIO:
    """Open a text file, decompressed. Bytes that are not UTF-8 become lone surrogates, for a check that knows their line."""
    with path.open("rb") as plain:
        head = plain.read(16)
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        compression = next((what for magic, what in CONTENTS.items() if head.startswith(magic)), None)
    elif not head:
        raise ValueError(f"it is empty, expected {compression} data")
    stream: BinaryIO
    if compression is None:
        stream = path.open("rb")
    elif compression == "gzip":
        stream = cast(BinaryIO, gzip.GzipFile(path))
    elif compression in COMPRESSIONS.values():
        import pyarrow

        # Not `zstandard` and `bz2`: they accept truncated files, or garbage behind the data, as complete.
        stream = cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression=compression)))
    else:
        raise StudyError(f"{shown(path)}: cannot be read ({compression}")
    start = cast(io.BufferedReader, stream).peek(4)
    encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8")
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape")


def _checked(text: str, name: str, line: int) -> str:
    """The text, which begins in a line of a file. Raises StudyError if its bytes were not UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            line += text.count("\n", 0, error.start)
            raise StudyError(
                f"{name}, line {line}: cannot be read (byte 0x{ord(text[error.start]) & 0xFF:02x} is not UTF-8); convert the "
                "file, for instance with `iconv -f LATIN1 -t UTF-8`"
            ) from None
    return text


def _checked_blocks(stream: TextIO, name: str) -> Iterator[str]:
    """Yield a text in blocks. Raises StudyError if it is not UTF-8, or holds a NUL, as binary files and UTF-16 do."""
    line = 1
    while block := stream.read(BLOCK):
        zero = _checked(block, name, line).find("\0")
        if zero >= 0:
            raise StudyError(
                f"{name}, line {line + block.count(chr(10), 0, zero)}: cannot be read (it holds a NUL, so it is UTF-16 or not "
                "text); convert the file, for instance with `iconv -f UTF-16LE -t UTF-8`"
            )
        yield block
        line += block.count("\n")


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


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"field {repeated!r} appears twice")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def jsonl_records(stream: TextIO, name: str, first: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the record of each line, and where it is. A file that holds one JSON array is read as that.

    first: the number of the first line.
    """
    for number, line in enumerate(stream, first):
        text = _checked(line, name, number).strip().lstrip("\ufeff")
        if number == 1 and text.startswith("["):
            yield from _json_records(stream, name, text)
            return
        if text:
            where = f"{name}, line {number}"
            try:
                record = DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                raise StudyError(f"{where}: invalid JSON ({error}); fix or remove the line") from None
            yield where, record


def _json_records(stream: TextIO, name: str, text: str = "") -> Iterator[tuple[str, object]]:
    """Yield the elements of an array, or the values that follow one another, and where they are.

    text: what was read already. No more than the longest record is in memory.
    """
    blocks = _checked_blocks(stream, name)
    number, at, ended, closing = 0, 0, False, ""
    while True:
        at = BETWEEN_VALUES.match(text, at).end()  # type: ignore[union-attr]
        where = f"{name}, record {number + 1}"
        if at == len(text) and not ended:
            text, at = next(blocks, ""), 0
            ended = not text
        elif at == len(text):
            if closing == "]":
                raise StudyError(f"{where}: cannot be read (the array does not end); repair the file")
            return
        elif number == 0 and not closing and text[at] == "[":
            closing, at = "]", at + 1
        elif closing and text[at] == closing:
            closing, at = "end", at + 1
        elif closing == "]" and number and text[at] == ",":
            at += 1
        elif closing == "end":
            raise StudyError(f"{where}: invalid JSON (text after the end of the array); fix the file")
        else:
            try:
                record, at = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                # Cut at the end of the block, or invalid?
                position = getattr(error, "pos", 0)
                cut = str(error).startswith("Unterminated string") or position >= len(text) - 16
                if ended or not cut:
                    reason = getattr(error, "msg", error)
                    raise StudyError(f"{where}: invalid JSON ({reason}); fix or remove the record") from None
                read, wanted = [text[at:]], 2 * (len(text) - at)
                while not ended and sum(map(len, read)) < wanted:
                    read.append(next(blocks, ""))
                    ended = not read[-1]
                text, at = "".join(read), 0
            else:
                number += 1
                yield where, record


def parquet_documents(path: Path, reader: RecordReader, groups: range | None = None) -> Iterator[Document]:
    """Yield the documents of a parquet file, or of some of its row groups."""
    import pyarrow
    import pyarrow.parquet

    name = shown(path)
    try:
        table = pyarrow.parquet.ParquetFile(path)
        schema = table.schema_arrow
        if repeated := [column for column, count in Counter(schema.names).items() if count > 1]:
            raise StudyError(f"{name}: the column {repeated[0]!r} appears twice; rename one of them")
        # Fails before any row is read if a column is missing.
        reader.check({column.name: _example(column.type) for column in schema}, name)
        chosen = range(table.num_row_groups) if groups is None else groups
        number = sum(table.metadata.row_group(group).num_rows for group in range(chosen.start))
        for batch in table.iter_batches(batch_size=1024, row_groups=list(chosen), columns=reader.fields):
            for record in batch.to_pylist():
                number += 1
                yield reader.join(record, f"{name}, row {number}")
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _example(kind: Any) -> Any:
    """A value of an Arrow type, for the names of its fields: every value that is no object is empty text."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {field.name: _example(field.type) for field in kind}
    return ""
