"""Put the parts of a corpus together: the same bits as `packing.pack` of all its documents, whoever made the parts and when."""

import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.packing import Division, write_packed
from retain.datamodules.corpora.parts.stored import StoredPart
from retain.datamodules.corpora.prepared import PackedCorpus
from retain.datamodules.corpora.reading.report import CorpusReport
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.split_writer import SplitWriter, Tokens
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.errors import StudyError

AT_A_TIME = 4096
"""Documents that are looked at together."""
COPIED_TOKENS = 1 << 22
"""Tokens that are copied together."""
GIVEN_BACK = 1 << 20
"""Tokens whose memory is given back together; a multiple of the size of a page."""


@dataclass(frozen=True)
class _OpenPart:
    """A part whose files are mapped into memory."""

    tokens: Tokens
    predicted: npt.NDArray[np.uint8] | None
    documents: npt.NDArray[Any]
    begins: npt.NDArray[np.int64]
    """The first token of each document."""


@dataclass(frozen=True)
class _Chunk:
    """Consecutive documents of a corpus."""

    documents: npt.NDArray[Any]
    """DOCUMENT [documents]."""
    parts: tuple[_OpenPart, ...]
    """The parts that they are in."""
    part: npt.NDArray[np.int64]
    """For each document, the index of its part."""
    begin: npt.NDArray[np.int64]
    """For each document, the index of its first token in its part."""


def assemble(
    streams: Sequence[Iterator[StoredPart]],
    tokenizer: Tokenizer,
    sequence_length: int,
    division: Division,
    tokens: int | None,
    folder: Path,
    report: CorpusReport,
    masked: bool = False,
    at_end: Callable[[int], None] = lambda documents: None,
    tally: Tally | None = None,
) -> PackedCorpus:
    """Pack the documents of parts into a new `folder`; memory is constant except for 8 bytes a document.

    streams: the parts of each stream in order; one document of each stream is taken in turn. A part is asked for only if the
    budget of `tokens` is not reached before it. at_end: called with the number of documents, empty ones included, if the
    source was read to its end. tally: what was counted when the parts were read; it then holds all counts. Other arguments as
    of `pack`. Raises StudyError if there is no document, DamageError.
    """
    tally = tally or Tally()

    def fill(writers: dict[str, SplitWriter], seen: HashSet) -> Counter[str]:
        counts = Counter[str]()
        read = places = 0
        empty = True
        for chunk in _chunks(streams):
            places += len(chunk.documents)
            empty = empty and not chunk.documents["hash"].any()
            texts = np.flatnonzero(chunk.documents["length"])
            new = texts[seen.add(chunk.documents["hash"][texts])] if len(texts) else texts
            counts["duplicates"] += int(np.count_nonzero(chunk.documents["hash"])) - len(new)
            held, trained = split_of(chunk.documents["hash"][new], division)
            lengths = chunk.documents["length"][new].astype(np.int64)
            if tokens is not None:
                reached = np.flatnonzero(writers["train"].tokens + np.cumsum(lengths * trained) >= tokens)
                if len(reached):
                    kept = slice(reached[0] + 1)
                    new, held, trained = new[kept], held[kept], trained[kept]
            read += len(new)
            counts["withheld"] += int(np.count_nonzero(~held & ~trained))
            _copy(chunk, new[held], writers["heldout"])
            _copy(chunk, new[trained], writers["train"])
            report(read, writers["train"].tokens)
            if tokens is not None and writers["train"].tokens >= tokens:
                return counts + tally.take()
        if empty:
            raise StudyError("the source holds no text; choose another source")
        at_end(places)
        return counts + tally.take()

    return write_packed(folder, tokenizer, sequence_length, division, masked, fill, tally)


def split_of(hashes: npt.NDArray[np.uint64], division: Division) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which documents are held out, and which are trained on, by their hashes."""
    held = hashes < np.uint64(int(division.heldout * 2**64))
    return held, ~held & (hashes >= np.uint64(int(division.withheld * 2**64)))


def distinct_tokens(parts: Iterable[StoredPart], division: Division) -> Iterator[tuple[int, int]]:
    """Yield for each part its tokens, and those of them to train on, of documents that no part before has."""
    seen = HashSet()
    for part in parts:
        documents = part.documents[part.documents["length"] > 0]
        new = documents[seen.add(documents["hash"])] if len(documents) else documents
        trained = split_of(new["hash"], division)[1]
        yield int(new["length"].sum(dtype=np.int64)), int(new["length"][trained].sum(dtype=np.int64))


def _copy(chunk: _Chunk, chosen: npt.NDArray[np.int64], writer: SplitWriter) -> None:
    """Append documents of a chunk to a split."""
    if not len(chosen):
        return
    writer.documents += len(chosen)
    writer.ends_inside |= bool(chunk.documents["inside"][chosen].any())
    ids: list[Tokens] = []
    flags: list[npt.NDArray[np.uint8]] = []
    waiting = 0
    for part, begin, end in _stretches(chunk, chosen):
        for first in range(begin, end, COPIED_TOKENS):
            piece = slice(first, min(first + COPIED_TOKENS, end))
            ids.append(part.tokens[piece])
            if writer.mask is not None:
                assert part.predicted is not None
                flags.append(part.predicted[piece])
            waiting += len(ids[-1])
            if waiting >= COPIED_TOKENS:
                writer.extend(ids, flags)
                writer.flush()
                ids, flags, waiting = [], [], 0
    writer.extend(ids, flags)
    writer.flush()


def _stretches(chunk: _Chunk, chosen: npt.NDArray[np.int64]) -> Iterator[tuple[_OpenPart, int, int]]:
    """Yield the tokens of documents as ranges of parts: one range for documents that follow one another in a part."""
    parts, begins = chunk.part[chosen], chunk.begin[chosen]
    ends = begins + chunk.documents["length"][chosen]
    follows = (parts[1:] == parts[:-1]) & (begins[1:] == ends[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~follows)))
    last = np.append(first[1:], len(chosen)) - 1
    for part, begin, end in zip(parts[first].tolist(), begins[first].tolist(), ends[last].tolist(), strict=True):
        yield chunk.parts[part], begin, end


def _chunks(streams: Sequence[Iterator[StoredPart]]) -> Iterator[_Chunk]:
    """Yield all documents, one of each stream in turn, without the streams that have ended."""
    left = [_Stream(stream) for stream in streams]
    while left := [stream for stream in left if stream.refill()]:
        rounds = min(max(1, AT_A_TIME // len(left)), *(stream.remaining for stream in left))
        begins = np.stack([stream.part.begins[stream.at : stream.at + rounds] for stream in left])
        documents = np.stack([stream.part.documents[stream.at : stream.at + rounds] for stream in left])
        for stream in left:
            stream.at += rounds
        # One document of each stream after the other: [streams, rounds] becomes [rounds, streams].
        yield _Chunk(
            documents.T.reshape(-1),
            tuple(stream.part for stream in left),
            np.tile(np.arange(len(left)), rounds),
            begins.T.reshape(-1),
        )


class _Stream:
    """The documents of one stream."""

    def __init__(self, parts: Iterator[StoredPart]) -> None:
        self.parts = parts
        self.part: _OpenPart
        self.at = self.end = 0
        """The next document of the part, and the number of its documents."""
        self.freed = 0
        """The first token of the part whose memory is not given back."""

    @property
    def remaining(self) -> int:
        return self.end - self.at

    def refill(self) -> bool:
        """Open the next part with documents if this one has ended. Returns whether there is a document."""
        if self.remaining:
            self._give_back()
        while not self.remaining:
            part = next(self.parts, None)
            if part is None:
                return False
            documents = part.documents
            ends = np.cumsum(documents["length"], dtype=np.int64)
            self.part = _OpenPart(part.tokens, part.predicted, documents, ends - documents["length"])
            self.at, self.end, self.freed = 0, len(documents), 0
        return True

    def _give_back(self) -> None:
        """Give back the memory of the tokens before this document: mapped pages stay as long as a part is open."""
        done = int(self.part.begins[self.at]) // GIVEN_BACK * GIVEN_BACK
        if done > self.freed:
            for mapped in (self.part.tokens, self.part.predicted):
                memory: object = None if mapped is None else mapped.base
                if mapped is not None and isinstance(memory, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                    size = mapped.itemsize
                    memory.madvise(mmap.MADV_DONTNEED, self.freed * size, (done - self.freed) * size)
            self.freed = done
