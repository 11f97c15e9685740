"""A verdict on one claim: how effects decide it, and which subjects of a study it is about."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from retain.results.analysis.axes import SIZE, grouped
from retain.results.analysis.effects import Effect
from retain.results.analysis.methods import pipeline_of
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size, parse_size

Outcome = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim for one subject, with the effects behind it."""

    claim: str
    """The claim's number in `claims.verdicts`, such as 1a; a study with several pipelines, sizes or planes has several
    verdicts on one claim."""
    sentence: str
    """The subject, the claim, the outcome, the number of seeds, and the deciding effect with its interval."""
    outcome: Outcome
    evidence: tuple[tuple[str, Effect], ...]
    """Effects by name and unit; the deciding ones come first."""
    note: str
    """Caveats, as sentences."""


def judge(
    claim: str,
    words: str,
    side: Literal[-1, 1],
    deciding: Sequence[tuple[str, Effect]],
    others: Iterable[tuple[str, Effect]] = (),
    notes: Iterable[str] = (),
) -> Verdict:
    """The verdict on the claim that every deciding effect is below 0 (side -1) or above 0 (side 1).

    It is supported if every interval lies on that side, not supported if one lies on the other side, and undecided otherwise,
    always so with fewer than two seeds. The sentence gives the effect that speaks most against the claim.
    """
    # Turned so that support for the claim lies above 0.
    turned = [(effect if side > 0 else -effect, name, effect) for name, effect in deciding]
    refuting = [each for each in turned if each[0].high < 0]
    outcome: Outcome = "undecided"
    if all(support.low > 0 for support, _, _ in turned):
        outcome = "supported"
    elif refuting:
        outcome = "not supported"
    _, name, effect = min(refuting or turned, key=lambda each: _strength(each[0]))
    sentence = f"{words}: {outcome} at {effect.sample}; {name}: {effect}."
    return Verdict(claim, sentence, outcome, (*deciding, *others), " ".join(note for note in notes if note))


def subjects(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each pipeline and size of D_post, by a name for them; comparisons never mix subjects."""
    return grouped(sorted(rows, key=_size_of), _subject)


def _strength(support: Effect) -> list[float]:
    """A sort key by the interval's lower end, then the mean: the weakest support comes first."""
    return [value if math.isfinite(value) else math.inf for value in (support.low, support.mean)]


def _subject(row: Row) -> str:
    size = f"D_post of {format_size(_size_of(row))} tokens" if SIZE in row["axes"] else None
    return ", ".join(part for part in (pipeline_of(row), size) if part)


def _size_of(row: Row) -> int:
    return parse_size(row["axes"].get(SIZE, 0))
