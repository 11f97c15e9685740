"""Open the prepared corpora and tokenisers of a store."""

from pathlib import Path

from retain.datamodules.corpora.packing import CURE, PackedCorpus, open_packed
from retain.datamodules.corpora.tokenizer import Tokenizer, load_tokenizer
from retain.sweeps.base.errors import DamageError, StudyError


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


def tokenizer_problem(folder: Path) -> str | None:
    """What is wrong with a prepared tokeniser, and the cure; None if it is the one that its folder names."""
    try:
        if stored_tokenizer(folder.parents[1], folder.name).fingerprint == folder.name:
            return None
    except DamageError as error:
        return str(error)
    return f"it is another tokeniser than its folder names; delete the folder, and {CURE}"
