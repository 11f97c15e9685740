"""Cut the source of a corpus into parts by its own shards: files, row groups of parquet files, ranges of lines, shards.

The cut is a function of the source and of the size of a part, so that any process makes the same one.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retain.datamodules.corpora.documents import count_shards
from retain.datamodules.corpora.find import find_sources, shown
from retain.datamodules.corpora.reading.files import check_formats, file_format
from retain.datamodules.corpora.reading.opened import COMPRESSIONS, CONTENTS, ENCODINGS
from retain.datamodules.corpora.sources import source_identity
from retain.sweeps.base.errors import MissingResourceError, os_reason
from retain.sweeps.schema.corpora import Corpus

ENDS = 1 << 16
"""Bytes at the beginning and at the end of a file that tell it from another one of the same size and time."""
UTF8 = "utf-8-sig"


@dataclass(frozen=True)
class Piece:
    """A file, or a range of one."""

    file: str
    """Its absolute path."""
    size: int
    """Bytes of the whole file, its modification time (ns), and a digest of its first and its last bytes."""
    time: int
    ends: str
    unit: Literal["file", "lines", "rows"] = "file"
    """What is counted: nothing, the bytes of lines, or row groups."""
    begin: int = 0
    end: int = 0

    def check(self) -> None:
        """Raise MissingResourceError if the file is no longer what was cut."""
        if _facts(Path(self.file)) != (self.size, self.time, self.ends):
            raise MissingResourceError(
                f"{self.file}: the file changed while it was prepared; prepare the study's data again once nothing writes "
                "to it"
            )


@dataclass(frozen=True)
class Part:
    """A piece of work: consecutive documents of a source."""

    bytes: int
    """Its size in the source: of files as they lie on disk; 0 if that is unknown."""
    pieces: tuple[Piece, ...] = ()
    shard: int | None = None
    """The number of a shard that `datasets` reads, from 0 on."""
    stream: int = 0
    """Which of the streams that are read in turn it belongs to; see `Corpus.in_turn`."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the part from others of its source."""
        if self.shard is not None:
            return {"shard": self.shard}
        return {
            "pieces": [[one.file, one.size, one.time, one.ends, one.unit, one.begin, one.end] for one in self.pieces]
        }


@dataclass(frozen=True)
class Cut:
    """The parts of a source, in its order."""

    parts: tuple[Part, ...]
    source: dict[str, Any] = field(compare=False)
    """The identity of the source when it was cut."""

    @property
    def shards(self) -> int:
        """The number of shards that `datasets` reads; 0 for files that Retain reads itself."""
        return sum(part.shard is not None for part in self.parts)

    @property
    def streams(self) -> list[list[Part]]:
        """The parts of each stream, in order."""
        found: dict[int, list[Part]] = {}
        for part in self.parts:
            found.setdefault(part.stream, []).append(part)
        return list(found.values())

    @property
    def in_turn(self) -> list[Part]:
        """The parts as a budget uses them up: the first of each stream, then the second of each, and so on."""
        streams = self.streams
        longest = max(map(len, streams), default=0)
        return [stream[number] for number in range(longest) for stream in streams if number < len(stream)]


def cut_source(corpus: Corpus, folder: Path, size: int) -> Cut:
    """Cut a source into parts of about `size` bytes; relative paths start at `folder`.

    corpus: pinned to a commit, if it is read from the hub. A source that cannot be cut is one part. Raises StudyError,
    MissingResourceError.
    """
    source = source_identity(corpus, folder)
    if corpus.package is not None:
        return Cut((Part(0),), source)
    if corpus.hf is not None:
        return Cut(tuple(_shards(corpus, folder, source, size)), source)
    assert corpus.files is not None
    found = find_sources(corpus.files, folder)
    files = [file for file in found if isinstance(file, Path) and _is_text(file)]
    total = sum(bytes_ or 0 for _, bytes_, _ in source["files"])
    # A corpus with files at URLs is read by one process.
    if total <= size or len(files) < len(found):
        return Cut((Part(total),), source)
    check_formats(files)
    return Cut(tuple(_together([piece for file in files for piece in _pieces(file.absolute(), size)], size)), source)


def _shards(corpus: Corpus, folder: Path, source: dict[str, Any], size: int) -> Iterator[Part]:
    """One part for each shard, in streams as `datasets` divides shards; one part for a small source."""
    known = [bytes_ or 0 for _, bytes_, _ in source.get("files", ())]
    shards = 1 if known and sum(known) <= size else count_shards(corpus, folder)
    if shards == 1:
        yield Part(sum(known))
        return
    streams = min(corpus.in_turn, shards)
    least, more = divmod(shards, streams)
    ends = [least * (number + 1) + min(number + 1, more) for number in range(streams)]
    for shard in range(shards):
        stream = next(number for number, end in enumerate(ends) if shard < end)
        yield Part(sum(known) // shards, shard=shard, stream=stream)


def _together(pieces: Sequence[tuple[Piece, int]], size: int) -> Iterator[Part]:
    """Parts of consecutive pieces, each of at least `size` bytes but the last."""
    taken: list[Piece] = []
    bytes_ = 0
    for piece, own in pieces:
        taken.append(piece)
        bytes_ += own
        if bytes_ >= size:
            yield Part(bytes_, tuple(taken))
            taken, bytes_ = [], 0
    if taken:
        yield Part(bytes_, tuple(taken))


def _pieces(file: Path, size: int) -> Iterator[tuple[Piece, int]]:
    """A file, or its ranges if it is large and can be divided, with the bytes of each."""
    whole = Piece(str(file), *_facts(file))
    form = file_format(file)
    if form == "parquet" and whole.size > size:
        yield from _row_groups(whole, size)
    elif form == "jsonl" and whole.size > size + size // 2 and _has_lines(file):
        yield from _lines(whole, size)
    else:
        yield whole, whole.size


def _row_groups(whole: Piece, size: int) -> Iterator[tuple[Piece, int]]:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.ParquetFile(whole.file).metadata
    except Exception:  # reading it says what is wrong
        yield whole, whole.size
        return
    sizes = [_compressed_bytes(metadata.row_group(group)) for group in range(metadata.num_row_groups)]
    begin = 0
    for group in range(len(sizes)):
        bytes_ = sum(sizes[begin : group + 1])
        if bytes_ >= size or group == len(sizes) - 1:
            yield Piece(whole.file, whole.size, whole.time, whole.ends, "rows", begin, group + 1), bytes_
            begin = group + 1


def _compressed_bytes(group: Any) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _lines(whole: Piece, size: int) -> Iterator[tuple[Piece, int]]:
    """Ranges that end at the ends of lines."""
    begin = 0
    with open(whole.file, "rb") as stream:
        while begin < whole.size:
            end = whole.size
            if whole.size - begin > size + size // 2:
                stream.seek(begin + size)
                stream.readline()
                end = stream.tell()
            yield Piece(whole.file, whole.size, whole.time, whole.ends, "lines", begin, end), end - begin
            begin = end


def _has_lines(file: Path) -> bool:
    """Whether a jsonl file is divided into lines as UTF-8 bytes: neither compressed nor in UTF-16, and no JSON array."""
    if file.suffix.lower() in COMPRESSIONS:
        return False
    with file.open("rb") as stream:
        first = stream.readline(ENDS)
    mark = next((name for start, name in ENCODINGS if first.startswith(start)), UTF8)
    compressed = any(first.startswith(start) for start in CONTENTS)
    text = first.decode(errors="replace").strip().lstrip("\ufeff")
    return mark == UTF8 and not compressed and not text.startswith("[") and b"\r" not in first.rstrip(b"\r\n")


def _is_text(path: Path) -> bool:
    """Whether a path can be written into a key."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        return False
    return True


def _facts(file: Path) -> tuple[int, int, str]:
    """Size, modification time and a digest of the ends of a file. Raises MissingResourceError."""
    try:
        with file.open("rb") as stream:
            found = os.fstat(stream.fileno())
            ends = stream.read(ENDS)
            stream.seek(max(0, found.st_size - ENDS))
            ends += stream.read(ENDS)
    except OSError as error:
        raise MissingResourceError(
            f"files: {shown(file)} cannot be read ({os_reason(error)}); make it readable, or correct the path"
        ) from None
    return found.st_size, found.st_mtime_ns, hashlib.sha256(ends).hexdigest()[:20]
