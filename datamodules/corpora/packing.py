"""Pack documents into sequences: tokenise, append end of text to each, cut to one length, write memory-mapped files."""

import hashlib
import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.documents import FORMAT, read_document, unreadable
from retain.sweeps.base.errors import DamageError

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 2**20
"""A batch ends at whichever comes first. Batching does not change what is packed."""

CONCURRENT_BATCHES = 3
"""Batches encoded at once. A batch uses all cores, except at its beginning and its end."""

SPLITS = ("train", "heldout")
Report = Callable[[int, int], None]
"""Called with the numbers of documents read and of training tokens so far."""


class _Split(TypedDict):
    """One split of a packed corpus."""

    documents: int
    sequences: int
    tokens: int
    sha256: str


class _Manifest(TypedDict):
    """The content of manifest.json."""

    sequence_length: int
    dtype: str
    tokenizer: str
    train: _Split
    heldout: _Split
    fingerprint: str


@dataclass(frozen=True)
class PackedCorpus:
    """A packed corpus on disk: manifest.json, and train.bin and heldout.bin, little-endian [sequences, length]."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def count(self, split: str) -> int:
        """The number of sequences in a split."""
        return int(self.manifest[split]["sequences"])

    def shape(self, split: str) -> tuple[int, int]:
        """The numbers of sequences in a split, and of tokens in a sequence."""
        return self.count(split), int(self.manifest["sequence_length"])

    def bytes(self, split: str) -> int:
        """The size of a split's file."""
        return math.prod(self.shape(split)) * int(np.dtype(self.manifest["dtype"]).itemsize)

    def sequences(self, split: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Memory-map all sequences of a split: [sequences, length]. Raises DamageError if the file cannot be read."""
        if self.count(split) == 0:
            return np.empty(self.shape(split), self.manifest["dtype"])
        self.check_size(split)
        path = self.folder / f"{split}.bin"
        try:
            return np.memmap(path, self.manifest["dtype"], "r", shape=self.shape(split))
        except OSError as error:
            raise unreadable(path, error, CURE) from error

    def check_size(self, split: str) -> None:
        """Check that the file of a split has the size that the manifest says. Raises DamageError."""
        path = self.folder / f"{split}.bin"
        try:
            expected = self.bytes(split)
            found: object = path.stat().st_size if path.is_file() else "no file"
        except (OSError, TypeError) as error:
            raise DamageError(f"{path} is damaged ({error}); {CURE}") from None
        if found != expected:
            raise DamageError(f"{path} is damaged (found {found}, expected {expected} bytes); {CURE}")


CURE = "prepare the study's data again, which repairs it"


def open_packed(folder: Path) -> PackedCorpus:
    """Open a packed corpus.

    Raises FileNotFoundError if it has no manifest, DamageError if the manifest is damaged or a file has another size.
    """
    manifest = dict(read_document(folder / "manifest.json", _Manifest, CURE))
    if fingerprint_of(manifest) != manifest["fingerprint"]:
        raise DamageError(f"{folder / 'manifest.json'} is damaged (its fingerprint is another); {CURE}")
    packed = PackedCorpus(folder, manifest)
    for split in SPLITS:
        packed.check_size(split)
    return packed


def packed_problem(folder: Path) -> str | None:
    """Read a packed corpus and return what is damaged and what to do; None if it matches the fingerprint in its name."""
    cure = "delete the folder and prepare the study's data again"
    try:
        packed = open_packed(folder)
        for split in SPLITS:
            with (folder / f"{split}.bin").open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != packed.manifest[split]["sha256"]:
                    return f"{split}.bin is damaged; {cure}"
    except DamageError as error:
        return str(error)
    except (OSError, KeyError, TypeError) as error:
        return f"the corpus cannot be read ({error}); {cure}"
    return None if fingerprint_of(packed.manifest) == folder.name else f"manifest.json is damaged; {cure}"


class _SplitWriter:
    """Appends whole sequences to a file and computes their SHA-256."""

    def __init__(self, stream: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
        self.stream, self.dtype, self.length = stream, dtype, length
        self.digest = hashlib.sha256()
        # array converts a list of ints in a third of the time that numpy takes.
        self.waiting = array("H" if dtype.itemsize == 2 else "I")
        self.documents = self.sequences = 0

    @property
    def tokens(self) -> int:
        return self.sequences * self.length + len(self.waiting)

    def add(self, token_ids: list[int], end_id: int) -> None:
        self.waiting.fromlist(token_ids)
        self.waiting.append(end_id)
        self.documents += 1

    def flush(self) -> None:
        whole = len(self.waiting) // self.length
        block = np.asarray(self.waiting[: whole * self.length]).astype(self.dtype, copy=False).tobytes()
        self.stream.write(block)
        self.digest.update(block)
        del self.waiting[: whole * self.length]
        self.sequences += whole

    def summary(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.sequences * self.length,
            "sha256": self.digest.hexdigest(),
        }


Batch = dict[int, str]
"""Distinct documents, each by its hash."""
Encoding = Future[list[list[int]]]
"""The token ids of each document of a batch, once they are computed."""


def pack(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    sequence_length: int,
    heldout: float,
    withheld: float,
    tokens: int | None,
    folder: Path,
    report: Report,
) -> PackedCorpus:
    """Tokenise and pack documents into a new `folder`; memory is constant except for 8 bytes a document.

    heldout: the share of documents in the held-out split.
    withheld: the largest held-out share of the study's corpora. Documents within it are in no training split, so that no
        corpus trains on what another one holds out.
    tokens: the budget of the training split; reading stops when it is reached. None for all documents.
    Exact duplicates are dropped, and so is the incomplete sequence at the end of each split.
    """
    folder.mkdir(parents=True)
    dtype = np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")
    with (folder / "train.bin").open("wb") as train, (folder / "heldout.bin").open("wb") as held:
        writers = {
            "train": _SplitWriter(train, dtype, sequence_length),
            "heldout": _SplitWriter(held, dtype, sequence_length),
        }
        batches = _distinct_batches(documents)
        _write_splits(_encode(batches, tokenizer), writers, tokenizer.end_id, heldout, withheld, tokens, report)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "sequence_length": sequence_length,
        "dtype": dtype.str,
        "tokenizer": tokenizer.fingerprint,
        **{split: writers[split].summary() for split in SPLITS},
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return PackedCorpus(folder, manifest)


def _write_splits(
    batches: Iterator[tuple[Batch, Encoding]],
    writers: dict[str, _SplitWriter],
    end_id: int,
    heldout: float,
    withheld: float,
    tokens: int | None,
    report: Report,
) -> None:
    """Write encoded documents to their splits until the training split holds `tokens` tokens; arguments as of `pack`."""
    train, read = writers["train"], 0
    for batch, encoding in batches:
        for hash_value, token_ids in zip(batch, encoding.result(), strict=True):
            read += 1
            if hash_is_heldout(hash_value, heldout):
                writers["heldout"].add(token_ids, end_id)
            elif not hash_is_heldout(hash_value, withheld):
                train.add(token_ids, end_id)
            if tokens is not None and train.tokens >= tokens:
                break
        for writer in writers.values():
            writer.flush()
        report(read, train.tokens)
        if tokens is not None and train.tokens >= tokens:
            break


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the identity of a packed corpus: a digest of its sequence length, integer type and splits."""
    parts = [manifest["sequence_length"], manifest["dtype"], *(manifest[split]["sha256"] for split in SPLITS)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _distinct_batches(documents: Iterable[str]) -> Iterator[Batch]:
    """Yield all documents in batches, without exact duplicates of earlier documents."""
    seen = HashSet()
    for batch in batch_documents(documents):
        hashes = [document_hash(document) for document in batch]
        new = seen.add(hashes)
        if new:
            yield {hashes[index]: batch[index] for index in new}


def batch_documents(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yield documents in batches of up to BATCH_DOCUMENTS documents or about BATCH_CHARACTERS characters."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batches: Iterator[Batch], tokenizer: Tokenizer) -> Iterator[tuple[Batch, Encoding]]:
    """Yield each batch with the encoding of its documents, in order; the next batches are encoded in the background."""
    with ThreadPoolExecutor(CONCURRENT_BATCHES, "encode") as threads:
        waiting = deque[tuple[Batch, Encoding]]()
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(tokenizer.encode, list(batch.values()))))
                if len(waiting) == CONCURRENT_BATCHES:
                    yield waiting.popleft()
            yield from waiting
        finally:
            threads.shutdown(cancel_futures=True)
