"""How many seeds a claim needs: the chance that a number of seeds decides it, simulated with the rule that judges it."""

from dataclasses import dataclass, replace

import numpy as np

from retain.results.analysis.effects import SIDE, tails
from retain.results.analysis.loss_planes import Floats
from retain.results.claims.judging import Verdict

WANTED = 0.8
"""The chance of a decision that counts as enough."""
MOST = 100
"""The most seeds that are tried."""
DRAWS, AT_A_TIME = 1000, 50
CAUTION = 0.8
"""The confidence of the upper limit of a pilot's spread."""


@dataclass(frozen=True)
class Pilot:
    """The deciding effects of a claim in a pilot, turned so that support lies above 0."""

    means: Floats
    """[m], the effects."""
    deviations: Floats
    """[s, m], the deviation of each of the pilot's seeds from the mean of each effect."""
    alternatives: int
    """How many of the claim's alternatives the effects belong to, in order."""

    @property
    def seeds(self) -> int:
        return len(self.deviations)

    @property
    def spread(self) -> Floats:
        """[m], the standard deviation over seeds."""
        return np.asarray(np.sqrt((self.deviations**2).sum(axis=0) / (self.seeds - 1)))

    def cautious(self) -> "Pilot":
        """The pilot with the upper limit of its spread (80% confidence): three seeds know a spread only to a factor of two."""
        from scipy.special import chdtri

        # chdtri inverts the upper tail of the χ² distribution.
        factor = np.sqrt((self.seeds - 1) / chdtri(self.seeds - 1, CAUTION))
        return replace(self, deviations=self.deviations * factor)

    def with_effect(self, size: float) -> "Pilot":
        """The pilot if every deciding effect were this far on the claimed side."""
        return replace(self, means=np.full_like(self.means, size))


def pilot_of(verdict: Verdict) -> Pilot | None:
    """The deciding effects of a verdict as a pilot; None with fewer than two seeds."""
    effects = verdict.deciding_effects
    seeds = sorted(set.intersection(*(set(effect.per_seed) for effect in effects)))
    if len(seeds) < 2:
        return None
    values = np.array([[effect.per_seed[seed] for effect in effects] for seed in seeds])
    return Pilot(values.mean(axis=0), values - values.mean(axis=0), verdict.alternatives)


def chances(pilot: Pilot, most: int = MOST) -> Floats:
    """The chance that the claim is decided with each number of seeds, [most + 1]; 0 with fewer than two.

    Seeds are drawn from a normal distribution with the pilot's means and covariance, and judged as by `judging.decide`: at
    equal numbers of seeds, both of its p-values are those of the weakest effect of the best alternative.
    """
    random, freedom = np.random.Generator(np.random.PCG64(0)), np.arange(1, most)
    drawn = random.standard_normal((DRAWS, most, pilot.seeds))
    parts = (drawn[start : start + AT_A_TIME] for start in range(0, DRAWS, AT_A_TIME))
    t = np.concatenate([_deciding_t(pilot, part) for part in parts])
    effects = len(pilot.means) // pilot.alternatives
    p = np.minimum(pilot.alternatives * tails(t, freedom), effects * tails(-t, freedom))
    return np.concatenate([[0.0, 0.0], (p < SIDE).mean(axis=0)])


def _deciding_t(pilot: Pilot, drawn: Floats) -> Floats:
    """Student's t of the weakest effect of the best alternative with 2, 3, ... seeds, [draws, most - 1].

    drawn: [draws, most, the pilot's seeds], standard normal.
    """
    noise = drawn @ (pilot.deviations / np.sqrt(pilot.seeds - 1))
    counts = np.arange(1, drawn.shape[1] + 1)[:, None]
    means = noise.cumsum(axis=1) / counts
    squares = (noise**2).cumsum(axis=1) / counts - means**2
    errors = np.sqrt(np.maximum(squares[:, 1:], np.finfo(float).tiny) / (counts[1:] - 1))
    t = (pilot.means + means[:, 1:]) / errors
    return np.asarray(t.reshape(*t.shape[:2], pilot.alternatives, -1).min(axis=-1).max(axis=-1))


def seeds_to_decide(pilot: Pilot, most: int = MOST) -> int | None:
    """The smallest number of seeds that decides with a chance of 80%; None if even `most` seeds do not."""
    enough = np.flatnonzero(chances(pilot, most) >= WANTED)
    return int(enough[0]) if len(enough) else None


def in_words(verdict: Verdict) -> str:
    """The sentence of a verdict; for an undecided one, also how many seeds would decide it at the effect and spread seen.

    Not at a look: the seeds of all looks are fixed.
    """
    pilot = pilot_of(verdict)
    if verdict.outcome != "undecided" or pilot is None or verdict.look is not None:
        return verdict.sentence
    found = seeds_to_decide(pilot)
    number = f"About {found}" if found else f"More than {MOST}"
    return (
        f"{verdict.sentence} {number} seeds would decide it at this effect and spread, with a chance of {WANTED:.0%}."
    )
