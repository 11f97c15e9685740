"""The documents of a corpus, whatever its source, and what identifies the source before it is read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from retain.datamodules.corpora.files import find_files, read_files
from retain.datamodules.corpora.packages import package_versions, read_package
from retain.datamodules.corpora.templates import template_of
from retain.sweeps.base.errors import MissingResourceError, RetainError, StudyError
from retain.sweeps.schema.study import Corpus

T = TypeVar("T")
DATASETS_FORMATS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv"}
"""What `datasets` reads local copies of a hub's files with, by ending."""


def read_documents(corpus: Corpus, folder: Path) -> Iterator[str]:
    """Non-empty documents in the source's order; relative files start at `folder`.

    Raises StudyError or MissingResourceError.
    """
    if corpus.package is not None:
        documents = read_package(corpus.package)
    elif corpus.hf is None:
        assert corpus.files is not None
        documents = read_files(find_files(corpus.files, folder), template_of(corpus), corpus.separator)
    else:
        documents = _read_hf(corpus, folder)
    return (document for document in documents if document.strip())


def source_of(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """What tells whether a source is the one that was read before, without reading it.

    Packages by version, files by path, size and time, Hugging Face by id and revision. It only finds prepared data
    again; identity is the fingerprint of the tokens.
    """
    source: dict[str, Any] = corpus.model_dump(
        include={"package", "hf", "config", "revision", "split", "text", "separator"}
    )
    # Only where they are used, so that what was prepared before they existed is found again.
    if corpus.template is not None:
        source["template"] = corpus.template
    if corpus.in_turn != 1:
        source["in_turn"] = corpus.in_turn
    if corpus.package is not None:
        source["versions"] = package_versions(corpus.package)
    if corpus.files is not None:
        files = find_files(corpus.files, folder)
        source["files"] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return source


def is_heldout(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out split of this share: by its hash alone, whatever the order and budget,
    so on the same side as its exact duplicates, and in the split of every larger share too."""
    return hash_is_heldout(document_hash(document), share)


def hash_is_heldout(number: int, share: float) -> bool:
    """The same, of a document whose hash is known."""
    return number < int(share * 2**64)


def document_hash(document: str) -> int:
    """64 bits of BLAKE2b over the text."""
    return int.from_bytes(hashlib.blake2b(document.encode(errors="replace"), digest_size=8).digest(), "big")


def _read_hf(corpus: Corpus, folder: Path) -> Iterator[str]:
    import datasets

    assert corpus.hf is not None
    template = template_of(corpus)
    try:
        if corpus.files is None:
            stream = datasets.load_dataset(
                corpus.hf, corpus.config, split=corpus.split, revision=corpus.revision, streaming=True
            )
        else:
            builder, files = _local_files(corpus.hf, find_files(corpus.files, folder))
            stream = datasets.load_dataset(builder, data_files=files, split=corpus.split, streaming=True)
        parts = min(corpus.in_turn, stream.num_shards)
        for record in in_turn([iter(stream.shard(parts, number)) for number in range(parts)]):
            yield template.join(record, f"hf: {corpus.hf}")
    except RetainError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingResourceError(
            f"hf: {corpus.hf} cannot be read ({type(error).__name__}: {reason}); check id, config, revision and split, "
            "and run `retain data` where there is internet"
        ) from error


def in_turn(streams: list[Iterator[T]]) -> Iterator[T]:
    """One item of each stream after another, round after round; a stream that ends is left out."""
    while streams:
        going = []
        for stream in streams:
            for item in stream:
                yield item
                going.append(stream)
                break
        streams = going


def _local_files(hf: str, files: list[Path]) -> tuple[str, list[str]]:
    """The `datasets` format of local files, and those of them that are data: `hf` is the format, or an id of the hub.

    Raises StudyError where no format, or more than one, is found.
    """
    if "/" not in hf:
        return hf, [str(file) for file in files]
    formats: dict[str, list[str]] = {}
    for file in files:
        for suffix in file.suffixes:
            if suffix in DATASETS_FORMATS:
                formats.setdefault(DATASETS_FORMATS[suffix], []).append(str(file))
    if len(formats) != 1:
        found = " and ".join(sorted(formats)) or "no data"
        raise StudyError(
            f"files: {found} found beside each other; name files of one format ({', '.join(DATASETS_FORMATS)}, each also "
            "compressed)"
        )
    return next(iter(formats.items()))
