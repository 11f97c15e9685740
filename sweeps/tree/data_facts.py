"""What planning needs to know of the data: fingerprints and sizes, known once `retain data` has run."""

from collections.abc import Mapping
from dataclasses import dataclass

UNPREPARED = "unprepared:"


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """One corpus, tokenised and packed; the counts are sequences, None while it is unprepared."""

    fingerprint: str
    train: int | None = None
    heldout: int | None = None


@dataclass(frozen=True)
class Facts:
    """All that a study reads: corpora by (name, sequence length), and the tokeniser."""

    tokenizer: str
    """Its fingerprint."""
    vocabulary: int
    """Its entries."""
    corpora: Mapping[tuple[str, int], CorpusFacts]

    @property
    def prepared(self) -> bool:
        """False while any fingerprint stands for data that is yet to be fetched: the keys are then provisional."""
        return not any(facts.fingerprint.startswith(UNPREPARED) for facts in self.corpora.values())
