"""Looks at verdicts while seeds are added in blocks, by a rule that keeps the error rate of a single look.

Whoever looks after every block, and stops as soon as a plain 95% interval is on one side of 0, errs several times as often as
5%. Here the numbers of seeds at all looks are fixed before anything is trained. The limit of the one-sided p-value at a look
is proportional to the look's number of seeds: between Pocock's limits, which are equal at all looks, and O'Brien and
Fleming's, which spend almost nothing early. The factor is such that, where an effect is 0, the chance to cross any limit at any
look is the rate that one look alone would have. The joint distribution of Student's t at all looks is simulated for it; under
normal differences it depends on nothing else than the numbers of seeds.

The same factor for every rate gives repeated p-values and repeated confidence intervals (Jennison and Turnbull, Group
Sequential Methods, chapter 9). They hold at every look, whatever made the study stop there.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from retain.results.analysis.effects import SIDE, tails
from retain.results.analysis.loss_planes import Floats

DRAWS = 200_000
"""Simulated sequences of looks: a rate of 2.5% is known to within 0.04 percentage points."""
AT_A_TIME = 10_000


@dataclass(frozen=True)
class Look:
    """One of several looks at the same growing results."""

    number: int
    """The number of the look, from 1 on."""
    counts: tuple[int, ...]
    """The number of seeds at each look, planned before training, ascending; the last is the most."""

    @property
    def seeds(self) -> int:
        """The number of seeds at this look."""
        return self.counts[self.number - 1]

    def __str__(self) -> str:
        """The look as text: `look 2 of 9`."""
        return f"look {self.number} of {len(self.counts)}"

    @property
    def weight(self) -> float:
        """The share of this look in the sum of all limits."""
        return self.seeds / sum(self.counts)

    def over_all(self, p: Floats) -> Floats:
        """Repeated one-sided p-values from those of this look alone; nan stays nan.

        A repeated p-value is the chance that, where the effect is 0, some look crosses a limit as strict as this p-value is
        for its look.
        """
        if len(self.counts) == 1:
            return p
        factor, lowest = p / self.weight, lowest_factors(self.counts)
        simulated = (np.searchsorted(lowest, factor, side="right") + 1) / (len(lowest) + 1)
        # At most the sum over looks (Bonferroni), which is exact for the rarest values, and at least this look's own.
        return np.asarray(np.maximum(p, np.minimum(factor, simulated)))

    @property
    def limit(self) -> float:
        """The one-sided p-value of this look alone below which its repeated p-value is below 0.025."""
        if len(self.counts) == 1:
            return SIDE
        lowest = lowest_factors(self.counts)
        factor = max(SIDE, float(lowest[int(np.ceil(SIDE * (len(lowest) + 1) - 1)) - 1]))
        return min(SIDE, self.weight * factor)

    @property
    def level(self) -> float:
        """The level of an interval at this look that is an interval of 95% over all looks."""
        return 1 - 2 * self.limit


@cache
def lowest_factors(counts: tuple[int, ...]) -> Floats:
    """The lowest ratio of p-value and weight over all looks in each of DRAWS simulated studies without an effect, ascending.

    counts: the number of seeds at each look.
    """
    random, looks = np.random.Generator(np.random.PCG64(0)), np.array(counts)
    weights = looks / looks.sum()
    found = [
        (tails(running_t(random.standard_normal((AT_A_TIME, counts[-1])), looks), looks - 1) / weights).min(axis=1)
        for _ in range(DRAWS // AT_A_TIME)
    ]
    return np.sort(np.concatenate(found))


def running_t(values: Floats, counts: Floats) -> Floats:
    """Student's t of the first n values of each row, [rows, looks], for each n of `counts`; values: [rows, seeds]."""
    index = np.asarray(counts, dtype=np.int64) - 1
    means = values.cumsum(axis=1)[:, index] / counts
    squares = (values**2).cumsum(axis=1)[:, index] / counts - means**2
    return np.asarray(means / np.sqrt(np.maximum(squares, np.finfo(float).tiny) / (counts - 1)))
