"""A verdict on one claim: how effects decide it, and which subjects of a study it is about.

The claims themselves, with their effects, are in `exposure.py` and `frontier.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Literal

import numpy as np

from retain.results.analysis.axes import SIZE, SUBSET, grouped, is_subset_apart
from retain.results.analysis.effects import SIDE, Effect, effect_of, tail
from retain.results.analysis.loss_planes import Floats
from retain.results.analysis.methods import pipeline_of
from retain.results.claims.looks import Look
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size, parse_size

Outcome = Literal["supported", "not supported", "undecided"]
OURS = "ours: the paper does not claim it"
SOURCES: Mapping[str, str] = {
    **dict.fromkeys(("1a", "1b"), "Section 4.2, Figure 3a"),
    **dict.fromkeys(("2a", "2b"), "Section 4.2, Figure 3b"),
    "3": "Figures 2, 8, 9",
    "4a": "Section 4.4, Figures 4, 5, 10, 11",
    "4b": "Section 4.4, Figures 6, 12",
    "4c": "Figures 6, 12",
    "4d": OURS,
    "4e": "Section 4.4",
    **dict.fromkeys(("5a", "5b", "5c"), "Figure 7"),
    **dict.fromkeys(("6a", "6b"), OURS),
    **dict.fromkeys(("7a", "7b"), "Bethune et al., arXiv 2502.06042"),
    **dict.fromkeys(("8a", "8b"), "Kotha & Liang, arXiv 2603.04964"),
    "8c": OURS,
    **dict.fromkeys(("9a", "9b"), "Springer et al., arXiv 2503.19206"),
    **dict.fromkeys(("10a", "10b"), "Baek et al., arXiv 2603.16177"),
}
"""Where the paper makes each claim, or which other paper does."""


@dataclass(frozen=True)
class Statement:
    """A claim about one subject; a study with several pipelines, sizes or planes has several statements of one claim."""

    claim: str
    """The claim's number in `claims.verdicts`, such as 1a."""
    name: str
    """The claim without its subject, such as `mixing improves the frontier`."""
    subject: str = ""
    """What it is about, such as a pipeline or a size of D_post; empty if the study has one subject."""
    plane: str = ""
    """The two losses of a frontier, `(L_ret, L_ft)`; empty for other claims."""

    @property
    def words(self) -> str:
        """The subject and the claim."""
        about = ", ".join(part for part in (self.subject, self.plane) if part)
        return f"{about}: {self.name}" if about else self.name


@dataclass(frozen=True)
class Verdict:
    """The outcome of one statement, with the effects behind it."""

    statement: Statement
    sentence: str
    """The subject, the claim, the outcome, the number of seeds, and the deciding effect with its interval."""
    outcome: Outcome
    evidence: tuple[tuple[str, Effect], ...]
    """Effects by name and unit; the deciding ones come first."""
    note: str
    """Caveats, as sentences."""
    side: Literal[-1, 1]
    """The side of 0 on which the claim has all deciding effects."""
    alternatives: int
    """The number of ways in which the claim may hold, such as one for each λ that may be best."""
    deciding: int
    """The number of deciding effects: as many for each alternative, one alternative after the other."""
    told: tuple[str, Effect]
    """The deciding effect that the sentence gives, with its name and unit."""
    p: float
    """The two-sided p-value; below 0.05 the claim is decided. nan with fewer than two seeds. At a look it is the repeated
    p-value, which counts all looks."""
    adjusted: float = math.nan
    """The p-value with Holm's correction over all verdicts that are judged together."""
    look: Look | None = None
    """The look at which the verdict was reached, if seeds were added until claims were decided; None for a fixed sample."""

    @property
    def claim(self) -> str:
        """The claim's number."""
        return self.statement.claim

    @property
    def words(self) -> str:
        """The subject and the claim."""
        return self.statement.words

    @property
    def source(self) -> str:
        """Where the paper, or which other one, makes the claim, or that none does."""
        return SOURCES[self.claim]

    @property
    def deciding_effects(self) -> list[Effect]:
        """The deciding effects, turned so that support for the claim lies above 0."""
        return [effect if self.side > 0 else -effect for _, effect in self.evidence[: self.deciding]]


def judge(
    statement: Statement,
    side: Literal[-1, 1],
    deciding: Sequence[tuple[str, Effect]],
    others: Iterable[tuple[str, Effect]] = (),
    notes: Iterable[str] = (),
    alternatives: int = 1,
    look: Look | None = None,
) -> Verdict:
    """The verdict on the statement that every deciding effect is below 0 (side -1) or above 0 (side 1).

    With several alternatives, `deciding` holds as many effects for each, and the claim is that all effects of any one of them
    are on that side. The claim is supported or not supported if `decide` says so at the error rate of a 95% interval, and
    undecided otherwise, always so with fewer than two seeds. The sentence gives the effect that speaks most against the
    claim, of the alternative that speaks most for it. At a look, intervals and p-values count all looks.
    """
    if look is not None:
        deciding, others = (
            [(name, effect_of(one.per_seed, look.level)) for name, one in part] for part in (deciding, others)
        )
    # Turned so that support for the claim lies above 0.
    turned = [(effect if side > 0 else -effect, name, effect) for name, effect in deciding]
    above = np.array([tail(each[0]) for each in turned]).reshape(alternatives, -1)
    below = np.array([tail(-each[0]) for each in turned]).reshape(alternatives, -1)
    if look is not None:
        above, below = look.over_all(above), look.over_all(below)
    support, refutation = decide(above, below)
    outcome: Outcome = "supported" if support < SIDE else "not supported" if refutation < SIDE else "undecided"
    best, size = int(np.argmin(above.max(axis=1))), above.shape[1]
    alternative = turned[best * size : (best + 1) * size]
    refuting = [each for each in alternative if outcome == "not supported" and each[0].high < 0]
    _, name, effect = min(refuting or alternative, key=lambda each: _strength(each[0]))
    sample = f"{effect.sample}, {look}" if look else effect.sample
    sentence = f"{statement.words}: {outcome} at {sample}; {name}: {effect}."
    if outcome == "undecided" and (effect.low > 0 or effect.high < 0):
        sentence += f" Corrected for the {len(deciding)} intervals of the claim, it is undecided."
    p = float(np.minimum(1.0, 2 * np.fmin(support, refutation)))
    corrected = f"Holm's correction for {len(deciding)} intervals applies." if len(deciding) > 1 else ""
    evidence, note = (*deciding, *others), " ".join(note for note in (*notes, corrected) if note)
    told, count = (name, effect), len(deciding)
    return Verdict(statement, sentence, outcome, evidence, note, side, alternatives, count, told, p, look=look)


def judged_at(look: Look, verdict: Verdict) -> Verdict:
    """A verdict of a fixed sample, judged as one of several looks: its intervals and p-values count all looks."""
    deciding, others = verdict.evidence[: verdict.deciding], verdict.evidence[verdict.deciding :]
    judged = judge(verdict.statement, verdict.side, deciding, others, (), verdict.alternatives, look)
    return replace(judged, note=verdict.note)


def decide(above: Floats, below: Floats) -> tuple[Floats, Floats]:
    """The one-sided p-values of support and of refutation of a claim, in the shape [...].

    above, below: [..., alternatives, effects], the p-values of each deciding effect for a mean above and below 0, where support
    lies above. The claim is that all effects of one alternative are above 0. Where every part has to be shown, the largest
    p-value counts (an intersection-union test, which needs no correction). Where one of several parts is enough, the smallest
    counts, multiplied by their number: the first step of Holm's procedure, which decides whether there is any.
    """
    alternatives, effects = above.shape[-2:]
    support = np.minimum(1.0, alternatives * above.max(axis=-1).min(axis=-1))
    return support, np.minimum(1.0, effects * below.min(axis=-1)).max(axis=-1)


def adjust(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts with p-values that are adjusted for all of them (Holm), in the order of the claims."""
    values = holm([verdict.p for verdict in verdicts])
    found = [replace(verdict, adjusted=value) for verdict, value in zip(verdicts, values, strict=True)]
    return sorted(found, key=lambda verdict: (int(verdict.claim.rstrip(ascii_lowercase)), verdict.claim))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `values`; nan stays nan and does not count."""
    order = sorted((value, index) for index, value in enumerate(values) if not math.isnan(value))
    adjusted, most = [math.nan] * len(values), 0.0
    for rank, (value, index) in enumerate(order):
        most = adjusted[index] = max(most, min(1.0, (len(order) - rank) * value))
    return adjusted


def shared_runs(repetition: Mapping[int, int]) -> str:
    """A note for a comparison whose seeds share the compared runs; empty if no two do. repetition: as in `axes.repetitions`."""
    if len(apart := set(repetition.values())) == len(repetition):
        return ""
    counted = f"The {len(repetition)} seeds share the runs that are compared, and count as {len(apart)}"
    return f"{counted}; vary seed, which repeats every stage."


def subjects(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each pipeline, size of D_post, and subset next to seeds, by a name; comparisons never mix subjects."""
    return grouped(sorted(rows, key=_size_of), _subject)


def _strength(support: Effect) -> list[float]:
    """A sort key by the interval's lower end, then the mean: the weakest support comes first."""
    return [value if math.isfinite(value) else math.inf for value in (support.low, support.mean)]


def _subject(row: Row) -> str:
    size = f"D_post of {format_size(_size_of(row))} tokens" if SIZE in row["axes"] else None
    subset = f"subset_seed {row['axes'][SUBSET]}" if is_subset_apart(row) else None
    return ", ".join(part for part in (pipeline_of(row), size, subset) if part)


def _size_of(row: Row) -> int:
    return parse_size(row["axes"].get(SIZE, 0))
