"""Count what is skipped and replaced while a source is read."""

from collections import Counter
from dataclasses import dataclass, field

from retain.sweeps.tree.data_facts import Reading

HIDDEN = 100
"""Names of hidden files that are kept."""


@dataclass
class Tally:
    """Counts by the names of the fields of `Reading`."""

    counts: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    """The names of hidden files that were left out."""
    compared: bool = False
    """Whether near copies are dropped, so that none is 0 and not unknown."""

    def take(self) -> Counter[str]:
        """Return the counts since the last call that are not 0."""
        counts, self.counts = self.counts, Counter()
        return +counts

    def reading(self) -> Reading:
        """Return the counts as they are now."""
        found = {"documents": 0, "tokens": 0} | ({"near": 0} if self.compared else {}) | self.counts
        return Reading(**found, hidden=sorted(set(self.hidden))[:HIDDEN])
