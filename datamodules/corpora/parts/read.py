"""Read the documents of one part of a source."""

import io
from collections.abc import Iterator
from pathlib import Path

from retain.datamodules.corpora.documents import counted, read_documents, read_shard
from retain.datamodules.corpora.find import shown
from retain.datamodules.corpora.parts.cut import Part, Piece
from retain.datamodules.corpora.reading.files import documents_of, file_format, naming_file, record_documents
from retain.datamodules.corpora.reading.json_records import jsonl_records
from retain.datamodules.corpora.reading.tables import parquet_records
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.chat import ChatTemplate
from retain.datamodules.corpora.responses.marked import Document
from retain.datamodules.corpora.responses.records import RecordReader, record_reader
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus


def part_documents(
    corpus: Corpus, folder: Path, part: Part, shards: int, chat: ChatTemplate | None = None, tally: Tally | None = None
) -> Iterator[Document]:
    """Yield the documents of a part, and empty text instead of null and empty ones.

    shards: the number of all shards of the source. tally: counts what is skipped or replaced, as `read_documents` does.
    Raises StudyError that names file and line, MissingResourceError, also if a file has changed since the source was cut.
    """
    tally = Tally() if tally is None else tally
    if part.shard is not None:
        yield from counted(read_shard(corpus, folder, part.shard, shards, chat), corpus, tally)
    elif not part.pieces:
        yield from read_documents(corpus, folder, chat, tally)
    else:
        yield from counted(_pieces_documents(part, record_reader(corpus, chat), corpus.separator), corpus, tally)


def _pieces_documents(part: Part, reader: RecordReader, separator: str | None) -> Iterator[Document | None]:
    for piece in part.pieces:
        piece.check()
    for piece in part.pieces:
        with naming_file(Path(piece.file)):
            yield from _piece_documents(piece, reader, separator)
        piece.check()


def _piece_documents(piece: Piece, reader: RecordReader, separator: str | None) -> Iterator[Document | None]:
    path = Path(piece.file)
    if piece.unit == "rows":
        groups = range(piece.begin, piece.end)
        yield from record_documents(parquet_records(path, shown(path), reader.fields, reader.check, groups), reader)
    elif piece.unit == "file":
        yield from documents_of(path, file_format(path), reader, separator)
    else:
        try:
            yield from _line_documents(piece, reader)
        except StudyError:
            # Read it once more to the same error, with the number of the line in the whole file.
            for _ in _line_documents(piece, reader, 1 + _lines_before(piece)):
                pass
            raise


def _line_documents(piece: Piece, reader: RecordReader, first: int | None = None) -> Iterator[Document | None]:
    number = first if first is not None else 1 if piece.begin == 0 else 2  # only a first line may begin an array
    with _lines_of(piece.file, piece.begin, piece.end) as stream:
        yield from record_documents(jsonl_records(stream, shown(piece.file), number), reader)


def _lines_before(piece: Piece) -> int:
    with _lines_of(piece.file, 0, piece.begin) as stream:
        return sum(1 for _ in stream)


def _lines_of(file: str, begin: int, end: int) -> io.TextIOWrapper:
    """A range of bytes of a file as text. Bytes that are not UTF-8 become lone surrogates, as in whole files."""
    return io.TextIOWrapper(io.BufferedReader(_Range(file, begin, end)), "utf-8", errors="surrogateescape")


class _Range(io.RawIOBase):
    """A range of bytes of a file."""

    def __init__(self, file: str, begin: int, end: int) -> None:
        self.stream = Path(file).open("rb", buffering=0)  # noqa: SIM115
        self.stream.seek(begin)
        self.left = end - begin

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self.stream.readinto(memoryview(buffer)[: self.left])
        self.left -= count
        return count

    def close(self) -> None:
        self.stream.close()
        super().close()
