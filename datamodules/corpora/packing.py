"""Pack documents into sequences: tokenise, append end of text to each, cut to one length, write memory-mapped files.

If only the responses of a corpus are predicted, a mask is beside each file of tokens: one bit a token, 1 if the token is
predicted, each sequence in whole bytes. A corpus of pairs has the rejected responses in files of their own; see
`preferences.packing`.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout
from retain.datamodules.corpora.parts.batches import Encoding, batch_documents, encode_ahead
from retain.datamodules.corpora.prepared import SPLITS, PackedCorpus, fingerprint_of
from retain.datamodules.corpora.reading.report import CorpusReport
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, text_of
from retain.datamodules.corpora.split_writer import SplitWriter
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.documents import FORMAT

Batch = tuple[list[int], Counter[str]]
"""The hashes of distinct documents, and what was counted since the batch before, see `Tally`."""


@dataclass(frozen=True)
class Division:
    """How documents are divided into training and held-out split."""

    heldout: float
    """The share of documents in the held-out split."""
    withheld: float
    """The largest held-out share of the study's corpora. Documents within it are in no training split, so that no corpus trains
    on what another one holds out."""
    own: Iterable[Document] = ()
    """The documents of a held-out split that the corpus brings along."""
    others: Collection[int] = ()
    """The hashes of documents that corpora of the study hold out in such splits: none of them is in the training split."""
    texts: float = 0.0
    """Only of pairs: the largest held-out share of the other corpora, which are divided by whole documents."""


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    sequence_length: int,
    division: Division,
    tokens: int | None,
    folder: Path,
    report: CorpusReport,
    masked: bool = False,
    tally: Tally | None = None,
) -> PackedCorpus:
    """Tokenise and pack documents into a new `folder`; memory is constant except for 8 bytes a document.

    tokens: the budget of the training split; reading stops when it is reached. None for all documents.
    masked: whether to keep which tokens are predicted. Otherwise all are.
    tally: counts what reading `documents` skips. It then holds the counts up to the budget, with those of packing.
    Exact duplicates are dropped, and so is the incomplete sequence at the end of each split.
    """

    tally = tally or Tally()

    def fill(writers: dict[str, SplitWriter], seen: HashSet) -> Counter[str]:
        batches = encode_ahead(_distinct_batches(documents, seen, tally), tokenizer)
        return _write_splits(batches, writers, division, tokens, report)

    return write_packed(folder, tokenizer, sequence_length, division, masked, fill, tally)


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The integer type of a tokeniser's tokens on disk."""
    return np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")


def write_packed(
    folder: Path,
    tokenizer: Tokenizer,
    sequence_length: int,
    division: Division,
    masked: bool,
    fill: Callable[[dict[str, SplitWriter], HashSet], Counter[str]],
    tally: Tally,
) -> PackedCorpus:
    """Write a packed corpus into a new `folder`; arguments as in `pack`.

    fill: writes the documents to the splits, without those whose hashes are in the set, once each, and returns the counts.
    """
    folder.mkdir(parents=True)
    dtype = token_type(tokenizer)
    with contextlib.ExitStack() as files:

        def writer(split: str) -> SplitWriter:
            stream = files.enter_context((folder / f"{split}.bin").open("wb"))
            mask = files.enter_context((folder / f"{split}.mask").open("wb")) if masked else None
            return SplitWriter(stream, mask, dtype, sequence_length)

        writers = {split: writer(split) for split in SPLITS}
        seen, counts = HashSet(), Counter[str]()
        for (_, skipped), encoding in encode_ahead(_distinct_batches(division.own, seen, tally), tokenizer):
            counts += skipped
            for encoded in encoding.result():
                writers["heldout"].add(encoded)
            writers["heldout"].flush()
        seen.add(list(division.others))
        counts += fill(writers, seen)
        tally.counts = sum((Counter(documents=one.documents, tokens=one.tokens) for one in writers.values()), counts)
    return write_manifest(folder, tokenizer, sequence_length, {split: writers[split].summary() for split in SPLITS})


def write_manifest(
    folder: Path, tokenizer: Tokenizer, sequence_length: int, splits: Mapping[str, Mapping[str, Any]]
) -> PackedCorpus:
    """Write the manifest of a packed corpus whose other files are written. splits: what it says of each split."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "sequence_length": sequence_length,
        "dtype": token_type(tokenizer).str,
        "tokenizer": tokenizer.fingerprint,
        **splits,
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return PackedCorpus(folder, manifest)


def _write_splits(
    batches: Iterator[tuple[Batch, Encoding]],
    writers: dict[str, SplitWriter],
    division: Division,
    tokens: int | None,
    report: CorpusReport,
) -> Counter[str]:
    """Write documents to their splits until the training split holds `tokens` tokens, and return the counts; see `pack`."""
    train, read, counts = writers["train"], 0, Counter[str]()
    for (hashes, skipped), encoding in batches:
        counts += skipped
        for hash_value, encoded in zip(hashes, encoding.result(), strict=True):
            read += 1
            if hash_is_heldout(hash_value, division.heldout):
                writers["heldout"].add(encoded)
            elif not hash_is_heldout(hash_value, division.withheld):
                train.add(encoded)
            else:
                counts["withheld"] += 1
            if tokens is not None and train.tokens >= tokens:
                break
        for writer in writers.values():
            writer.flush()
        report(read, train.tokens)
        if tokens is not None and train.tokens >= tokens:
            break
    return counts


def _distinct_batches(
    documents: Iterable[Document], seen: HashSet, tally: Tally
) -> Iterator[tuple[Batch, list[Document]]]:
    """Yield all documents in batches, without exact duplicates of earlier documents, or of those in `seen`."""
    for batch in batch_documents(documents):
        hashes = [document_hash(text_of(document)) for document in batch]
        new = seen.add(hashes)
        tally.counts["duplicates"] += len(batch) - len(new)
        yield ([hashes[index] for index in new], tally.take()), [batch[index] for index in new]
    if counts := tally.take():  # what was skipped after the last document
        yield ([], counts), []
