"""The documents of a corpus, whatever its source, and what identifies the source before it is read."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.files import document_of, find_files, read_files
from datamodules.packages import package_versions, read_package
from sweeps.errors import MissingResourceError, RetainError
from sweeps.schema import Corpus


def read_documents(corpus: Corpus, folder: Path) -> Iterator[str]:
    """Non-empty documents in the source's order; relative files start at `folder`.

    Raises StudyError or MissingResourceError.
    """
    if corpus.package is not None:
        documents = read_package(corpus.package)
    elif corpus.hf is None:
        assert corpus.files is not None
        documents = read_files(find_files(corpus.files, folder), corpus.text, corpus.separator)
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
    if corpus.package is not None:
        source["versions"] = package_versions(corpus.package)
    if corpus.files is not None:
        files = find_files(corpus.files, folder)
        source["files"] = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return source


def is_heldout(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out split of this share: by its hash alone, whatever the order and budget,
    so on the same side as its exact duplicates, and in the split of every larger share too."""
    return document_hash(document) < int(share * 2**64)


def document_hash(document: str) -> int:
    """64 bits of BLAKE2b over the text."""
    return int.from_bytes(hashlib.blake2b(document.encode(errors="replace"), digest_size=8).digest(), "big")


def _read_hf(corpus: Corpus, folder: Path) -> Iterator[str]:
    import datasets

    assert corpus.hf is not None
    files = None if corpus.files is None else [str(file) for file in find_files(corpus.files, folder)]
    try:
        stream = datasets.load_dataset(
            corpus.hf, corpus.config, data_files=files, split=corpus.split, revision=corpus.revision, streaming=True
        )
        for record in stream:
            yield document_of(record, corpus.text, f"hf: {corpus.hf}")
    except RetainError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingResourceError(
            f"hf: {corpus.hf} cannot be read ({type(error).__name__}: {reason}); check id, config, revision and split, "
            "and run `retain data` where there is internet"
        ) from error
