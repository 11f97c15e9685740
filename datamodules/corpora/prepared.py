"""Open the prepared corpora and tokenisers of a store.

Readers that only ask what a store has import no numpy and no tokenizers: only what maps tokens or encodes text needs them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from retain.datamodules.corpora.tokenizer import Tokenizer, load_tokenizer, saved_vocabulary
from retain.sweeps.base.documents import read_document, unreadable
from retain.sweeps.base.errors import DamageError, StudyError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from retain.datamodules.corpora.split_writer import Tokens

SPLITS = ("train", "heldout")
REJECTED = ".rejected"
"""What the names of the files with rejected responses have after that of the split."""
TOKEN_BYTES = {"<u2": 2, "<u4": 4}
"""The bytes of a token, by the integer type that a manifest names."""
CURE = "prepare the study's data again, which repairs it"


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
        return math.prod(self.shape(split)) * TOKEN_BYTES[self.manifest["dtype"]]

    def sequences(self, split: str, rejected: bool = False) -> "Tokens":
        """Memory-map all sequences of a split: [sequences, length]. Raises DamageError if the file cannot be read.

        rejected: of pairs, those with the rejected responses.
        """
        name = f"{split}{REJECTED if rejected else ''}.bin"
        return self._map(split, name, self.manifest["dtype"], self.shape(split))

    def mask(self, split: str, rejected: bool = False) -> "npt.NDArray[np.uint8] | None":
        """Memory-map the mask of a split: bits, uint8 [sequences, bytes]; None if all tokens are predicted.

        rejected: as in `sequences`. Raises DamageError if the file cannot be read.
        """
        if not self.masked:
            return None
        count, length = self.shape(split)
        name = f"{split}{REJECTED if rejected else ''}.mask"
        return self._map(split, name, "u1", (count, mask_bytes(length)))

    def _map(self, split: str, name: str, dtype: str, shape: tuple[int, int]) -> "npt.NDArray[Any]":
        import numpy as np

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
            except (OSError, KeyError) as error:
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


def open_packed(folder: Path) -> PackedCorpus:
    """Open a packed corpus.

    Raises FileNotFoundError if it has no manifest, DamageError if the manifest is damaged or a file has another size.
    """
    manifest = dict(read_document(folder / "manifest.json", _Manifest, CURE))
    if fingerprint_of(manifest) != manifest["fingerprint"]:
        raise DamageError(f"{folder / 'manifest.json'} is damaged (its fingerprint does not match); {CURE}")
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


def fingerprint_of(manifest: dict[str, Any]) -> str:
    """Return the identity of a packed corpus: a digest of its sequence length, integer type, splits, and masks and rejected
    responses if any."""
    parts = [manifest["sequence_length"], manifest["dtype"], *(manifest[split]["sha256"] for split in SPLITS)]
    if has_mask(manifest):
        parts += [manifest[split]["mask_sha256"] for split in SPLITS]
    if has_pairs(manifest):
        parts += [manifest[split][name] for split in SPLITS for name in ("rejected_sha256", "rejected_mask_sha256")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def packed_corpus(store: Path, fingerprint: str) -> PackedCorpus:
    """Open a prepared corpus. Raises DamageError if the store lacks it, or its files are not those of its manifest."""
    folder = store / "corpora" / fingerprint
    try:
        packed = open_packed(folder)
    except FileNotFoundError:
        problem = "has no manifest.json" if folder.is_dir() else f"not found in {store}"
        raise DamageError(f"corpus {fingerprint} {problem}; {CURE}") from None
    if packed.fingerprint != fingerprint:
        raise DamageError(f"{folder} holds another corpus; delete it, and {CURE}")
    return packed


def stored_tokenizer(store: Path, fingerprint: str) -> Tokenizer:
    """Load a prepared tokeniser. Raises DamageError if the store lacks it, or its files cannot be read."""
    folder = store / "tokenizers" / fingerprint
    try:
        return load_tokenizer(folder)
    except StudyError as error:
        cause = str(error).rpartition(";")[0].removeprefix("tokenizer: ")
        raise DamageError(f"{cause}; {CURE}") from error


def stored_vocabulary(store: Path, fingerprint: str) -> int:
    """The vocabulary of a prepared tokeniser; what else it holds is not read. Raises as `stored_tokenizer` does."""
    try:
        return saved_vocabulary(store / "tokenizers" / fingerprint)
    except (StudyError, LookupError, TypeError, ValueError):  # stored_tokenizer says what is wrong
        return stored_tokenizer(store, fingerprint).vocabulary


def tokenizer_problem(folder: Path) -> str | None:
    """What is wrong with a prepared tokeniser, and the cure; None if it is the one that its folder names."""
    try:
        if stored_tokenizer(folder.parents[1], folder.name).fingerprint == folder.name:
            return None
    except DamageError as error:
        return str(error)
    return f"it is not the tokeniser that its folder names; delete the folder, and {CURE}"
