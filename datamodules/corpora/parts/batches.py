"""Tokenise documents in batches, the next ones in the background."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from retain.datamodules.corpora.responses.marked import Document, Encoded, encode_documents, text_of
from retain.datamodules.corpora.tokenizer import Tokenizer

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 2**20
"""A batch ends at whichever comes first. Batching does not change what is packed."""

CONCURRENT_BATCHES = 3
"""Batches encoded at once. A batch uses all cores, except at its beginning and its end."""

AnyDocument = TypeVar("AnyDocument", bound=Document)
Named = TypeVar("Named")
Encoding = Future[list[Encoded]]
"""The tokens of each document of a batch, once they are computed."""


def batch_documents(documents: Iterable[AnyDocument]) -> Iterator[list[AnyDocument]]:
    """Yield documents in batches of up to BATCH_DOCUMENTS documents or about BATCH_CHARACTERS characters."""
    batch: list[AnyDocument] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(text_of(document))
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_ahead(
    batches: Iterator[tuple[Named, list[Document]]], tokenizer: Tokenizer
) -> Iterator[tuple[Named, Encoding]]:
    """Yield what names each batch with the encoding of its documents, in order; the next batches are encoded meanwhile."""
    with ThreadPoolExecutor(CONCURRENT_BATCHES, "encode") as threads:
        waiting = deque[tuple[Named, Encoding]]()
        try:
            for name, documents in batches:
                waiting.append((name, threads.submit(encode_documents, tokenizer, documents)))
                if len(waiting) == CONCURRENT_BATCHES:
                    yield waiting.popleft()
            yield from waiting
        finally:
            threads.shutdown(cancel_futures=True)


def ends_inside(encoded: Encoded) -> bool:
    """Whether a document with marked responses holds an end of text before its end."""
    token_ids, predicted = encoded
    return predicted is not None and token_ids.index(token_ids[-1]) < len(token_ids) - 1
