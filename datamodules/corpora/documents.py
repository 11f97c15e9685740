"""Read the documents of any corpus, identify its source without reading it, and split off the held-out documents."""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from retain.datamodules.corpora.find import SourceFile, data_set_folder, find_sources
from retain.datamodules.corpora.reading.files import read_files
from retain.datamodules.corpora.reading.packages import package_records, read_package
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.chat import ChatTemplate
from retain.datamodules.corpora.responses.marked import Document, dividing_text, text_of, with_texts
from retain.datamodules.corpora.responses.records import RecordReader, document_of, record_reader
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.base.redaction import redacted
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.tree.data_facts import reading_remarks

T = TypeVar("T")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, as JSON can write it; no text in UTF-8 has one."""
DATASETS_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv"}
"""The `datasets` builder for local copies of a hub's files, by file suffix."""


def read_documents(
    corpus: Corpus,
    folder: Path,
    chat: ChatTemplate | None = None,
    tally: Tally | None = None,
    reader: RecordReader | None = None,
) -> Iterator[Document]:
    """Yield the non-empty documents of a corpus in the source's order; relative paths start at `folder`.

    chat: writes the conversations of a corpus with `messages`; None for a look at their contents. tally: counts what is
    skipped, and the documents in which halves of characters are replaced. reader: turns the records into documents, if it is
    another than that of the corpus. Raises StudyError, also if there is no document, or MissingResourceError.
    """
    tally = Tally() if tally is None else tally
    reader = reader or record_reader(corpus, chat)
    if corpus.package is not None:
        documents: Iterator[Document | None] = _read_package(corpus, reader)
    elif corpus.hf is None:
        assert corpus.files is not None
        documents = read_files(find_sources(corpus.files, folder, tally.hidden), reader, corpus.separator)
    else:
        documents = _read_hf(corpus, folder, reader, tally)
    empty = True
    for document in counted(documents, corpus, tally):
        if text_of(document):
            empty = False
            yield document
    if empty:
        skipped = ", ".join(reading_remarks(tally.reading()))
        raise StudyError(f"the source holds no text{f' ({skipped})' if skipped else ''}; choose another source")


def counted(documents: Iterator[Document | None], corpus: Corpus, tally: Tally) -> Iterator[Document]:
    """Yield documents without lone surrogates, and empty text instead of null and empty ones; count all three."""
    for document in documents:
        if document is None:
            tally.counts["null"] += 1
            yield ""
        elif text_of(document).strip():
            yield _whole(document, tally)
        else:
            if corpus.separator is None:  # nothing between two separators is no document
                tally.counts["empty"] += 1
            yield ""


def _whole(document: Document, tally: Tally) -> Document:
    """A document without lone surrogates."""
    text = text_of(document)
    if text.isascii() or not LONE_SURROGATE.search(text):
        return document
    tally.counts["replaced"] += 1
    return with_texts(document, lambda text: LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text))


def is_heldout(document: Document, share: float) -> bool:
    """Return whether a document belongs to the held-out split of a share (0 to 1).

    The document's hash alone decides, or that of a pair's prompt: exact duplicates are in the same split, order and token
    budget do not matter, and the held-out split of a share contains that of every smaller share.
    """
    return hash_is_heldout(document_hash(dividing_text(document)), share)


def hash_is_heldout(hash_value: int, share: float) -> bool:
    """Return whether a document with this hash belongs to the held-out split of a share."""
    return hash_value < int(share * 2**64)


def document_hash(document: str) -> int:
    """Return 64 bits of BLAKE2b over the text."""
    return int.from_bytes(hashlib.blake2b(document.encode(errors="replace"), digest_size=8).digest(), "big")


def _read_package(corpus: Corpus, reader: RecordReader) -> Iterator[Document | None]:
    assert corpus.package is not None
    if corpus.prompt is None and not corpus.has_conversations:
        yield from read_package(corpus.package)
        return
    for number, record in enumerate(package_records(corpus.package), 1):
        yield document_of(reader, record, f"package: {corpus.package}, record {number}")


def _read_hf(
    corpus: Corpus, folder: Path, reader: RecordReader, tally: Tally, shard: tuple[int, int] | None = None
) -> Iterator[Document | None]:
    """Yield the documents of a data set, or of one shard: its number from 0 on, and the number of all."""
    where = f"hf: {corpus.hf}" if shard is None else f"hf: {corpus.hf}, shard {shard[0] + 1} of {shard[1]}"
    with _naming_hf(corpus, folder):
        stream = _hf_stream(corpus, folder, tally)
        if shard is not None:
            records = iter(stream.shard(shard[1], shard[0]))
        else:
            parts = min(corpus.in_turn, stream.num_shards)
            records = interleave([iter(stream.shard(parts, number)) for number in range(parts)])
        for number, record in enumerate(records, 1):
            yield document_of(reader, record, f"{where}, record {number}")


def count_shards(corpus: Corpus, folder: Path) -> int:
    """The number of shards of a data set, which `datasets` reads one after the other. Raises MissingResourceError."""
    with _naming_hf(corpus, folder):
        return int(_hf_stream(corpus, folder, Tally()).num_shards)


def read_shard(
    corpus: Corpus, folder: Path, number: int, shards: int, chat: ChatTemplate | None = None
) -> Iterator[Document | None]:
    """Yield the documents of one shard of a data set, empty ones and None for null records included.

    Raises StudyError, MissingResourceError.
    """
    return _read_hf(corpus, folder, record_reader(corpus, chat), Tally(), (number, shards))


def _hf_stream(corpus: Corpus, folder: Path, tally: Tally) -> Any:
    import datasets

    assert corpus.hf is not None
    if corpus.files is None:
        place = data_set_folder(corpus, folder) or corpus.hf
        return datasets.load_dataset(place, corpus.config, split=corpus.split, revision=corpus.revision, streaming=True)
    builder, files = _local_files(corpus.hf, find_sources(corpus.files, folder, tally.hidden))
    return datasets.load_dataset(builder, data_files=files, split=corpus.split, streaming=True)


@contextlib.contextmanager
def _naming_hf(corpus: Corpus, folder: Path) -> Iterator[None]:
    """Raise MissingResourceError, with a cure, if `datasets` cannot read a data set in the block."""
    try:
        yield
    except RetainError:
        raise
    except Exception as error:
        reason = " ".join(redacted(str(error)).split())[:300]
        if corpus.files or data_set_folder(corpus, folder):
            cure = "check that the files are intact and in this format, config and split, or repair them"
            cure += "; text, jsonl, json and parquet files need no `hf:`" if corpus.files else ""
        else:
            cure = (
                "check id, config, revision and split, and prepare the study's data on a machine with internet access"
            )
        raise MissingResourceError(
            f"hf: {corpus.hf} cannot be read ({type(error).__name__}: {reason}); {cure}"
        ) from error


def interleave(streams: list[Iterator[T]]) -> Iterator[T]:
    """Yield one item of each stream in turn, round after round, without the streams that have ended."""
    while streams:
        unfinished = []
        for stream in streams:
            for item in stream:
                yield item
                unfinished.append(stream)
                break
        streams = unfinished


def _local_files(hf: str, files: Sequence[SourceFile]) -> tuple[str, list[str]]:
    """Return the `datasets` format of local files, and those of the files that are data.

    hf: a format, or an id on the hub; with an id, the files' suffixes decide. Raises StudyError if the files have no known
    format, or several formats.
    """
    if "/" not in hf:
        return hf, [str(file) for file in files]
    formats: dict[str, list[str]] = {}
    for file in files:
        for suffix in file.suffixes:
            if form := DATASETS_FORMATS.get(suffix.lower()):
                formats.setdefault(form, []).append(str(file))
    if len(formats) != 1:
        found = " and ".join(sorted(formats)) or "no known format"
        raise StudyError(
            f"files: found {found}, expected one format; name files of one format ({', '.join(DATASETS_FORMATS)}; each may "
            "be compressed)"
        )
    return next(iter(formats.items()))
