"""The files of a part that was tokenised.

    tokens.bin      the tokens of all documents, little-endian
    documents.bin   for each document its hash, its number of tokens, and whether it holds an end of text before its end
    predicted.bin   for each token whether it is predicted, one byte each; only of a corpus with a mask
    part.json       what the files are, with their SHA-256

A part that proved to be beyond the budget of its corpus has only the file unneeded.json.

A document without tokens is empty, or a copy of an earlier one of the part: it only holds a place, as documents of several
streams are read in turn.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash
from retain.datamodules.corpora.packing import token_type
from retain.datamodules.corpora.parts.batches import batch_documents, encode_ahead, ends_inside
from retain.datamodules.corpora.reading.report import CorpusReport
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, text_of
from retain.datamodules.corpora.split_writer import Tokens
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.documents import read_document, unreadable, write_document
from retain.sweeps.base.errors import DamageError

TOKENS, DOCUMENTS, PREDICTED, MANIFEST = "tokens.bin", "documents.bin", "predicted.bin", "part.json"
UNNEEDED = "unneeded.json"
DOCUMENT = np.dtype([("hash", "<u8"), ("length", "<u4"), ("inside", "u1")])
CURE = "delete the folder and prepare the study's data again, which makes the part again"


class _Manifest(TypedDict):
    """The content of part.json."""

    tokenizer: str
    """The fingerprint of the tokeniser."""
    dtype: str
    documents: int
    """The number of all documents, empty ones and copies included."""
    tokens: int
    counts: dict[str, int]
    """What was skipped or replaced while the part was read, see `Reading`."""
    sha256: dict[str, str]
    """Of each file, by its name."""


@dataclass(frozen=True)
class StoredPart:
    """A part that was tokenised."""

    folder: Path
    manifest: _Manifest

    @property
    def tokens(self) -> Tokens:
        """Memory-map the tokens: [tokens]."""
        return self._map(TOKENS, np.dtype(self.manifest["dtype"]), self.manifest["tokens"])

    @property
    def documents(self) -> npt.NDArray[Any]:
        """Memory-map the documents: DOCUMENT [documents]."""
        return self._map(DOCUMENTS, DOCUMENT, self.manifest["documents"])

    @property
    def predicted(self) -> npt.NDArray[np.uint8] | None:
        """Memory-map whether each token is predicted: uint8 [tokens]; None without a mask."""
        if PREDICTED not in self.manifest["sha256"]:
            return None
        return self._map(PREDICTED, np.dtype(np.uint8), self.manifest["tokens"])

    def check(self) -> None:
        """Raise DamageError if a file is not what was written."""
        for name, digest in self.manifest["sha256"].items():
            try:
                with (self.folder / name).open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise unreadable(self.folder / name, error, CURE) from error
            if found != digest:
                raise DamageError(f"{self.folder / name} is damaged; {CURE}")

    def _map(self, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        if count == 0:
            return np.empty(0, dtype)
        try:
            return np.memmap(self.folder / name, dtype, "r", shape=(count,))
        except (OSError, ValueError) as error:
            raise DamageError(f"{self.folder / name} is damaged ({error}); {CURE}") from error


def is_part(folder: Path) -> bool:
    """Whether a folder holds a part that was tokenised."""
    return (folder / MANIFEST).is_file()


def open_part(folder: Path) -> StoredPart:
    """Open a part. Raises FileNotFoundError if it has no manifest, DamageError."""
    return StoredPart(folder, read_document(folder / MANIFEST, _Manifest, CURE))


def write_part(
    documents: Iterable[Document], tokenizer: Tokenizer, masked: bool, folder: Path, report: CorpusReport, tally: Tally
) -> StoredPart:
    """Tokenise documents into a new `folder`; the manifest is written last.

    masked: whether to keep what is predicted. tally: what is counted while the documents are read, which is kept.

    Memory is constant except for 8 bytes a document.
    """
    folder.mkdir(parents=True)
    dtype = token_type(tokenizer)
    names = [TOKENS, DOCUMENTS, *([PREDICTED] if masked else [])]
    digests = {name: hashlib.sha256() for name in names}
    count = tokens = 0
    with ExitStack() as files:
        streams = {name: files.enter_context((folder / name).open("wb")) for name in names}
        for found, encoding in encode_ahead(_batches(documents), tokenizer):
            encoded = encoding.result()
            found["length"][found["length"] > 0] = [len(ids) for ids, _ in encoded]
            found["inside"][found["length"] > 0] = [ends_inside(one) for one in encoded]
            ids = array("I")
            for one, _ in encoded:
                ids.fromlist(one)
            blocks = {TOKENS: np.frombuffer(ids, np.uint32).astype(dtype).tobytes(), DOCUMENTS: found.tobytes()}
            if masked:
                blocks[PREDICTED] = b"".join(bytes(flags or [True] * len(own)) for own, flags in encoded)
            for name, block in blocks.items():
                streams[name].write(block)
                digests[name].update(block)
            count, tokens = count + len(found), tokens + len(ids)
            report(count, tokens)
    manifest: _Manifest = {
        "tokenizer": tokenizer.fingerprint,
        "dtype": dtype.str,
        "documents": count,
        "tokens": tokens,
        "counts": dict(tally.counts),
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
    }
    write_document(folder / MANIFEST, manifest)
    return StoredPart(folder, manifest)


def _batches(documents: Iterable[Document]) -> Iterator[tuple[npt.NDArray[Any], list[Document]]]:
    """Yield batches: all documents as DOCUMENT, the new ones with length 1, and these documents."""
    seen = HashSet()
    for batch in batch_documents(documents):
        texts = [index for index, document in enumerate(batch) if text_of(document).strip()]
        hashes = [document_hash(text_of(batch[index])) for index in texts]
        new = seen.add(hashes) if hashes else []
        found = np.zeros(len(batch), DOCUMENT)
        found["hash"][texts] = hashes
        found["length"][[texts[index] for index in new]] = 1
        yield found, [batch[texts[index]] for index in new]
