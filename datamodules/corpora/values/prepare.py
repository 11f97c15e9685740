"""Find the values of the held-out documents of corpora with `by`: read the documents again, without those trained on."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from retain.datamodules.corpora.documents import document_hash, hash_is_heldout, read_documents
from retain.datamodules.corpora.parts.batches import batch_documents
from retain.datamodules.corpora.prepared import PackedCorpus
from retain.datamodules.corpora.responses.marked import Document, encode_documents, text_of
from retain.datamodules.corpora.responses.records import record_reader
from retain.datamodules.corpora.responses.study_documents import chat_template, heldout_hashes, pinned_corpus
from retain.datamodules.corpora.sources import (
    Note,
    corpus_source,
    naming_corpus,
    noted_commit,
    read_note,
    write_note,
)
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.datamodules.corpora.values.field import ValueReader
from retain.datamodules.corpora.values.labels import (
    MOST_VALUES,
    Labels,
    labels_of,
    values_definition,
    values_source,
    write_labels,
)
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.read import StudyFile


def prepare_values(
    file: StudyFile, store: Path, name: str, length: int, tokenizer: Tokenizer, packed: PackedCorpus
) -> None:
    """Find the values of a packed corpus and write them into the store. Raises StudyError, MissingResourceError."""
    source = values_source(file, name, length, tokenizer.fingerprint)
    packed_from = corpus_source(file, name, length, tokenizer.fingerprint)
    labels = _find(file, store, name, tokenizer, packed, noted_commit(store, packed_from))
    write_labels(store, labels)
    for noted in (source, values_definition(file, name, length)):
        if read_note(store, noted) != (note := Note(labels.fingerprint, {})):
            write_note(store, noted, note)


def _find(
    file: StudyFile, store: Path, name: str, tokenizer: Tokenizer, packed: PackedCorpus, commit: str | None
) -> Labels:
    """The labels of a packed corpus.

    commit: that on the hub which the corpus was packed at. Raises StudyError, also if there are too many values;
    MissingResourceError if the documents are not those of the packed corpus.
    """
    corpus = pinned_corpus(file, name, store).model_copy(update={"revision": commit} if commit else {})
    assert corpus.by is not None
    source = corpus.heldout_corpus or corpus
    reader = ValueReader(record_reader(source, chat_template(file, source)), corpus.by)
    wanted = int(packed.manifest["heldout"]["documents"])
    values: list[str] = []
    tokens: list[int] = []
    sha256, left = hashlib.sha256(), packed.bytes("heldout")
    with naming_corpus(file, name, heldout=source is not corpus):
        documents = read_documents(source, file.folder, reader=reader)
        own = source is not corpus
        others = set[int]() if own else set(heldout_hashes(file, store, without=name))
        chosen = _heldout(documents, 1.0 if own else corpus.heldout_share, others, wanted)
        for batch in batch_documents(_noting(chosen, lambda: values.append(_value_of(reader)))):
            if len(set(values)) > MOST_VALUES:
                raise StudyError(
                    f"by: field {corpus.by!r} has more than {MOST_VALUES} values in the held-out documents, and each is a "
                    "column of all results; name a field with fewer"
                )
            for numbers, _ in encode_documents(tokenizer, batch):
                tokens.append(len(numbers))
                block = np.array(numbers).astype(packed.manifest["dtype"]).tobytes()[:left]
                sha256.update(block)
                left -= len(block)
        if values and not reader.found:
            raise StudyError(
                f"by: no record has a field {corpus.by!r} (the first one has {reader.names}); correct or remove by"
            )
    if sha256.hexdigest() != packed.manifest["heldout"]["sha256"]:
        raise MissingResourceError(
            f"{file.path.name}: corpora.{name}.by: the held-out documents are not those that were packed, so the source has "
            "changed; prepare the study's data again once nothing writes to it"
        )
    return labels_of(packed.fingerprint, corpus.by, values, tokens)


def _heldout(documents: Iterator[Document], share: float, seen: set[int], count: int) -> Iterator[Document]:
    """Yield the first `count` distinct documents within a held-out share. seen: the hashes of others to leave out."""
    if not count:
        return
    for document in documents:
        number = document_hash(text_of(document))
        if hash_is_heldout(number, share) and number not in seen:
            seen.add(number)
            yield document
            count -= 1
            if not count:
                return


def _noting(documents: Iterator[Document], note: Callable[[], None]) -> Iterator[Document]:
    """Yield documents, and call `note` for each before the next one is read."""
    for document in documents:
        note()
        yield document


def _value_of(reader: ValueReader) -> str:
    """The value of the document that was read last. Raises StudyError if it was no record."""
    if reader.value is None:
        raise StudyError("by: plain text has no fields; write the documents as jsonl, or remove by")
    return reader.value
