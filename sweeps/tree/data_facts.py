"""The fingerprints and sizes of the data, which planning needs. They are final once `retain data` has run."""

from collections.abc import Mapping
from dataclasses import dataclass

UNPREPARED = "unprepared:"
"""The prefix of the provisional fingerprint of an unprepared corpus."""


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """One corpus, tokenised and packed at one sequence length."""

    fingerprint: str
    """The digest of its tokens; a provisional one while the corpus is unprepared."""
    train: int | None = None
    """The number of sequences in the training split; None while the corpus is unprepared."""
    heldout: int | None = None
    """The number of sequences in the held-out split; None while the corpus is unprepared."""

    @property
    def prepared(self) -> bool:
        return not self.fingerprint.startswith(UNPREPARED)


@dataclass(frozen=True)
class Facts:
    """The facts of all data that a study reads."""

    tokenizer: str
    """The fingerprint of the tokeniser."""
    vocabulary: int
    """The number of entries of the tokeniser."""
    corpora: Mapping[tuple[str, int], CorpusFacts]
    """The corpora by name and sequence length."""

    @property
    def prepared(self) -> bool:
        """Whether all corpora are prepared. Until then, stage keys are provisional."""
        return all(facts.prepared for facts in self.corpora.values())
