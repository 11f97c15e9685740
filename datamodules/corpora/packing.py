"""Pack documents into sequences: tokenise, append end of text to each, cut to one length, write memory-mapped files.

A corpus of which only the responses are predicted has a mask beside each file of tokens: one bit a token, 1 if the token is
predicted, each sequence in whole bytes. A corpus of pairs has the rejected responses in files of their own; see
`preferences.packing`.
"""

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout
from retain.datamodules.corpora.parts.batches import Encoding, batch_documents, encode_ahead
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, text_of
from retain.datamodules.corpora.split_writer import SplitWriter, Tokens
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.documents import FORMAT, read_document, unreadable
from retain.sweeps.base.errors import DamageError

SPLITS = ("train", "heldout")
REJECTED = ".rejected"
"""What the names of the files with rejected responses have after that of the split."""
Report = Callable[[int, int], None]
"""Called with the numbers of documents read and of training tokens so far."""


class _Split(TypedDict):
    """One split of a packed corpus."""

    documents: int
    sequences: int
    tokens: int
    sha256: str
    predicted: NotRequired[int]
    """The number of predicted tokens, without the first of each sequence, which has nothing to be predicted from; like the
    mask's digest, only of a corpus with a mask."""
    mask_sha256: NotRequired[str]
    rejected_sha256: NotRequired[str]
    """Like the digest below, only of a corpus of pairs: that of the rejected responses."""
    rejected_mask_sha256: NotRequired[str]
    ends_inside: NotRequired[bool]
    """True if a document holds an end of text before its end, as some chat templates write it."""


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
    """A packed corpus on disk: manifest.json, train.bin and heldout.bin, little-endian [sequences, length].

    With a mask also train.mask and heldout.mask: bits, [sequences, length]. In a corpus of pairs, these files hold each prompt
    with its chosen response, and train.rejected.bin and so on the same prompt with the rejected one.
    """

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

    @property
    def masked(self) -> bool:
        """Whether only some tokens are predicted."""
        return has_mask(self.manifest)

    @property
    def has_pairs(self) -> bool:
        """Whether it is a corpus of pairs."""
        return has_pairs(self.manifest)

    def predicted(self, split: str) -> int:
        """The number of predicted tokens in a split; the first token of a sequence never is."""
        count, length = self.shape(split)
        return int(self.manifest[split]["predicted"]) if self.masked else count * (length - 1)

    @property
    def ends_inside(self) -> bool:
        """Whether a document holds an end of text before its end."""
        return any(self.manifest[split].get("ends_inside", False) for split in SPLITS)

    def bytes(self, split: str) -> int:
        """The size of a split's tokens; of pairs, without the rejected responses."""
        return math.prod(self.shape(split)) * int(np.dtype(self.manifest["dtype"]).itemsize)

    def sequences(self, split: str, rejected: bool = False) -> Tokens:
        """Memory-map all sequences of a split: [sequences, length]. Raises DamageError if the file cannot be read.

        rejected: of pairs, those with the rejected responses.
        """
        name = f"{split}{REJECTED if rejected else ''}.bin"
        return self._map(split, name, np.dtype(self.manifest["dtype"]), self.shape(split))

    def mask(self, split: str, rejected: bool = False) -> npt.NDArray[np.uint8] | None:
        """Memory-map the mask of a split: bits, uint8 [sequences, bytes]; None if all tokens are predicted.

        rejected: as of `sequences`. Raises DamageError if the file cannot be read.
        """
        if not self.masked:
            return None
        count, length = self.shape(split)
        name = f"{split}{REJECTED if rejected else ''}.mask"
        return self._map(split, name, np.dtype(np.uint8), (count, mask_bytes(length)))

    def _map(self, split: str, name: str, dtype: np.dtype[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
        if self.count(split) == 0:
            return np.empty(shape, dtype)
        self.check_size(split)
        path = self.folder / name
        try:
            return np.memmap(path, dtype, "r", shape=shape)
        except OSError as error:
            raise unreadable(path, error, CURE) from error

    def check_size(self, split: str) -> None:
        """Check that the files of a split have the sizes that the manifest says. Raises DamageError."""
        for name in files_of(self.manifest, split):
            path = self.folder / name
            try:
                count, length = self.shape(split)
                expected = count * mask_bytes(length) if name.endswith(".mask") else self.bytes(split)
                found: object = path.stat().st_size if path.is_file() else "no file"
            except (OSError, TypeError) as error:
                raise DamageError(f"{path} is damaged ({error}); {CURE}") from None
            if found != expected:
                raise DamageError(f"{path} is damaged (found {found}, expected {expected} bytes); {CURE}")


def has_mask(manifest: Mapping[str, Any]) -> bool:
    """Whether a packed corpus has a mask, by its manifest."""
    return all("mask_sha256" in manifest[split] for split in SPLITS)


def has_pairs(manifest: Mapping[str, Any]) -> bool:
    """Whether a packed corpus is one of pairs, by its manifest."""
    return all("rejected_mask_sha256" in manifest[split] for split in SPLITS)


def files_of(manifest: Mapping[str, Any], split: str) -> dict[str, str]:
    """The files of a split, with the field of the manifest that holds the SHA-256 of each."""
    found = {f"{split}.bin": "sha256"} | ({f"{split}.mask": "mask_sha256"} if has_mask(manifest) else {})
    if has_pairs(manifest):
        found |= {f"{split}{REJECTED}.bin": "rejected_sha256", f"{split}{REJECTED}.mask": "rejected_mask_sha256"}
    return found


def mask_bytes(length: int) -> int:
    """The bytes of the mask of one sequence."""
    return -(-length // 8)


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
            for name, digest in files_of(packed.manifest, split).items():
                with (folder / name).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != packed.manifest[split][digest]:
                        return f"{name} is damaged; {cure}"
    except DamageError as error:
        return str(error)
    except (OSError, KeyError, TypeError) as error:
        return f"the corpus cannot be read ({error}); {cure}"
    return None if fingerprint_of(packed.manifest) == folder.name else f"manifest.json is damaged; {cure}"


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
    report: Report,
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
    """Write a packed corpus into a new `folder`; arguments as of `pack`.

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
    report: Report,
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


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the identity of a packed corpus: a digest of its sequence length, integer type, splits, and masks and rejected
    responses if any."""
    parts = [manifest["sequence_length"], manifest["dtype"], *(manifest[split]["sha256"] for split in SPLITS)]
    if has_mask(manifest):
        parts += [manifest[split]["mask_sha256"] for split in SPLITS]
    if has_pairs(manifest):
        parts += [manifest[split][name] for split in SPLITS for name in ("rejected_sha256", "rejected_mask_sha256")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


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
