"""Documents into sequences: tokenised, end of text between them, cut to one length, memory-mapped."""

import hashlib
import json
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.files import read_json

DOCUMENTS_A_BATCH, CHARACTERS_A_BATCH = 1024, 2**20
"""Where a batch of documents ends, whichever comes first; neither shows in what is packed."""

BATCHES_AT_ONCE = 3
"""Encoded side by side: each uses all cores, but for its beginning and its end."""

SPLITS = ("train", "heldout")
Report = Callable[[int, int], None]
"""Called with the documents and the training tokens so far."""


@dataclass(frozen=True)
class PackedCorpus:
    """A packed corpus on disk: `train.bin` and `heldout.bin`, little-endian, [sequences, length]."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def count(self, split: str) -> int:
        """Sequences in a split."""
        return int(self.manifest[split]["sequences"])

    def sequences(self, split: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """All sequences of a split, mapped, not read: [sequences, length]. Raises MissingResourceError."""
        shape = (self.count(split), int(self.manifest["sequence_length"]))
        if shape[0] == 0:
            return np.empty(shape, self.manifest["dtype"])
        try:
            return np.memmap(self.folder / f"{split}.bin", self.manifest["dtype"], "r", shape=shape)
        except (OSError, ValueError) as error:
            raise MissingResourceError(
                f"{self.folder / split}.bin is damaged ({error}); delete {self.folder} and run `retain data` again"
            ) from None


def open_packed(folder: Path) -> PackedCorpus:
    """A packed corpus from its folder. Raises FileNotFoundError, MissingResourceError."""
    return PackedCorpus(folder, read_json(folder / "manifest.json"))


def packed_problem(folder: Path) -> str | None:
    """What is wrong with a packed corpus, read again from disk; None where it is what its name says."""
    cure = "delete the folder and run `retain data` again"
    try:
        packed = open_packed(folder)
        for split in SPLITS:
            with (folder / f"{split}.bin").open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != packed.manifest[split]["sha256"]:
                    return f"{split}.bin is damaged; {cure}"
    except (OSError, MissingResourceError, ValueError, KeyError) as error:
        return f"it cannot be read ({error}); {cure}"
    return None if fingerprint_of(packed.manifest) == folder.name else f"its manifest is damaged; {cure}"


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
    """Tokenise and pack documents into `folder`, in flat memory but for 8 bytes of hash a document.

    heldout: share of the documents; withheld: the largest such share of any corpus that is trained on beside this one,
    kept out of this one's training split too; tokens: where the training split ends, None for all documents. Exact
    duplicates are dropped. What is left of each split after its last whole sequence is dropped: less than one sequence.
    """
    folder.mkdir(parents=True)
    dtype = np.dtype("<u2" if tokenizer.vocabulary <= 2**16 else "<u4")
    read = 0
    with (folder / "train.bin").open("wb") as train, (folder / "heldout.bin").open("wb") as held:
        writers = {
            "train": _SplitWriter(train, dtype, sequence_length),
            "heldout": _SplitWriter(held, dtype, sequence_length),
        }
        for batch, encoded in _encoded(_batches(documents), tokenizer):
            for number, document in zip(batch.hashes, encoded, strict=True):
                read += 1
                if hash_is_heldout(number, heldout):
                    writers["heldout"].add(document, tokenizer.end_id)
                elif not hash_is_heldout(number, withheld):
                    writers["train"].add(document, tokenizer.end_id)
                if tokens is not None and writers["train"].tokens >= tokens:
                    break
            for writer in writers.values():
                writer.flush()
            report(read, writers["train"].tokens)
            if tokens is not None and writers["train"].tokens >= tokens:
                break
    manifest: dict[str, Any] = {
        "sequence_length": sequence_length,
        "dtype": dtype.str,
        "tokenizer": tokenizer.fingerprint,
        **{split: writers[split].summary() for split in SPLITS},
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return PackedCorpus(folder, manifest)


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """The identity of a packed corpus: its length, its number type, and the digests of its two splits."""
    parts = [manifest["sequence_length"], manifest["dtype"], *(manifest[split]["sha256"] for split in SPLITS)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


class _SplitWriter:
    """Appends whole sequences to a file and digests them on the way."""

    def __init__(self, stream: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
        self.stream, self.dtype, self.length = stream, dtype, length
        self.digest = hashlib.sha256()
        # A list of Python's becomes numbers of a machine's in a third of the time that numpy takes.
        self.waiting = array("H" if dtype.itemsize == 2 else "I")
        self.documents = self.sequences = 0

    @property
    def tokens(self) -> int:
        return self.sequences * self.length + len(self.waiting)

    def add(self, numbers: list[int], end: int) -> None:
        self.waiting.fromlist(numbers)
        self.waiting.append(end)
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


@dataclass
class _Batch:
    """Distinct documents and their hashes."""

    documents: list[str]
    hashes: list[int]


def _batches(documents: Iterable[str]) -> Iterator[_Batch]:
    """All documents but exact duplicates of earlier ones."""
    seen = HashSet()
    for batch in cut(documents):
        hashes = [document_hash(document) for document in batch]
        new = seen.add(hashes)
        if new:
            yield _Batch([batch[place] for place in new], [hashes[place] for place in new])


def cut(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) == DOCUMENTS_A_BATCH or characters >= CHARACTERS_A_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(batches: Iterator[_Batch], tokenizer: Tokenizer) -> Iterator[tuple[_Batch, list[list[int]]]]:
    """Each batch with the numbers of its documents, in order; the next ones are encoded meanwhile."""
    with ThreadPoolExecutor(BATCHES_AT_ONCE, "encode") as threads:
        waiting = deque[tuple[_Batch, Future[list[list[int]]]]]()
        try:
            for batch in batches:
                waiting.append((batch, threads.submit(tokenizer.encode, batch.documents)))
                if len(waiting) == BATCHES_AT_ONCE:
                    yield (first := waiting.popleft())[0], first[1].result()
            while waiting:
                yield (first := waiting.popleft())[0], first[1].result()
        finally:
            threads.shutdown(cancel_futures=True)
