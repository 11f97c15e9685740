"""Read records from tables: csv, parquet and arrow."""

import contextlib
import csv
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import counted

DELIMITERS = (",", ";", "\t", "|")
"""What may separate the columns of a csv file, in the order in which it is tried."""
ROWS = 1024
"""Rows that are converted at a time."""
Check = Callable[[Mapping[str, Any], str], None]
"""Raises StudyError if a record lacks a field; see `RecordReader.check`."""


def csv_records(lines: Iterable[str], name: str, fields: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows below the header, and where each begins; every value is text.

    The delimiter is the first of DELIMITERS with which the header has all fields. Raises StudyError if the quotes of a row are
    wrong, or it has another number of values than the header.
    """
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the library's 128 KB
    lines = iter(lines)
    first = next(lines, "")
    rows = csv.reader(itertools.chain((first,), lines), delimiter=_delimiter(first, fields), strict=True)
    header: list[str] = []
    while True:
        where = f"{name}, line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise StudyError(
                f"{where}: invalid csv ({error}); put the value in quotes, and double the quotes inside"
            ) from None
        if row is None:
            return
        if not header:
            header = row
            _check_names(header, name)
        elif row and len(row) != len(header):
            raise StudyError(
                f"{where}: found {counted(len(row), 'value')}, expected {len(header)} as in the header; put values that hold "
                "the separator or a line end in quotes"
            )
        elif row:
            yield where, dict(zip(header, row, strict=True))


def parquet_records(
    file: Any, name: str, fields: list[str], check: Check, groups: range | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a parquet file, or of some of its row groups, with the columns that hold fields only.

    file: a path, or a stream that can seek.
    Raises StudyError if a column is missing, before any row is read, ValueError if the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        _check_schema(table.schema_arrow, name, check)
        chosen = range(table.num_row_groups) if groups is None else groups
        number = sum(table.metadata.row_group(group).num_rows for group in range(chosen.start))
        for batch in table.iter_batches(batch_size=ROWS, row_groups=list(chosen), columns=fields):
            for record in batch.to_pylist():
                number += 1
                yield f"{name}, row {number}", record
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def arrow_records(file: BinaryIO, name: str, check: Check) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of an Arrow file, in the file format (Feather) or the stream format, which `datasets` writes.

    file: a stream that can seek. Raises as `parquet_records` does.
    """
    import pyarrow

    try:
        number = 0
        for batch in _arrow_batches(file, name, check):
            for start in range(0, batch.num_rows, ROWS):
                for record in batch.slice(start, ROWS).to_pylist():
                    number += 1
                    yield f"{name}, row {number}", record
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _arrow_batches(file: BinaryIO, name: str, check: Check) -> Iterator[Any]:
    import pyarrow

    if file.read(6) == b"ARROW1":
        table = pyarrow.ipc.open_file(file)
        _check_schema(table.schema, name, check)
        yield from map(table.get_batch, range(table.num_record_batches))
        return
    file.seek(0)
    with contextlib.closing(pyarrow.ipc.open_stream(file)) as stream:
        _check_schema(stream.schema, name, check)
        yield from stream


def _delimiter(header: str, fields: list[str]) -> str:
    for delimiter in DELIMITERS:
        if set(fields) <= set(next(csv.reader([header], delimiter=delimiter), [])):
            return delimiter
    return DELIMITERS[0]


def _check_schema(schema: Any, name: str, check: Check) -> None:
    _check_names(schema.names, name)
    check({column.name: _example(column.type) for column in schema}, name)


def _check_names(columns: list[str], name: str) -> None:
    if repeated := [column for column, count in Counter(columns).items() if count > 1]:
        raise StudyError(f"{name}: the column {repeated[0]!r} appears twice; rename one of them")


def _example(kind: Any) -> Any:
    """A value of an Arrow type, for the names of its fields: every value that is no object is empty text."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {field.name: _example(field.type) for field in kind}
    return ""
