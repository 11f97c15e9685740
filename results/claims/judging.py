"""A verdict on one claim: how it is reached from effects, and what of a study it is about."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from retain.results.analysis.effects import Effect
from retain.results.analysis.methods import pipeline_of
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size, parse_size

SIZE = "posttrain.tokens"


@dataclass(frozen=True)
class Verdict:
    claim: str
    """Its number in `claims.verdicts`, such as 1a; several verdicts share one where a study has several pipelines, sizes
    or views."""
    sentence: str
    """What was claimed of what, the outcome, the number of seeds, the deciding effect and its interval."""
    outcome: Literal["supported", "not supported", "undecided"]
    evidence: tuple[tuple[str, Effect], ...]
    """Effects by name and unit, the deciding ones first."""
    note: str
    """What the reader should know beside it."""


def judged(
    claim: str,
    words: str,
    side: Literal[-1, 1],
    deciding: Sequence[tuple[str, Effect]],
    others: Iterable[tuple[str, Effect]] = (),
    notes: Iterable[str] = (),
) -> Verdict:
    """The verdict on a claim that every deciding effect is below 0 (side -1) or above it (side 1).

    Supported where each interval lies on that side, not supported where one lies on the other, undecided otherwise and
    without intervals, with fewer than two seeds. The sentence gives the effect that speaks most against the claim.
    """
    favouring = [(effect.low if side > 0 else -effect.high) > 0 for _, effect in deciding]
    refuting = [(effect.high if side > 0 else -effect.low) < 0 for _, effect in deciding]
    outcome: Literal["supported", "not supported", "undecided"] = "undecided"
    if all(favouring):
        outcome = "supported"
    elif any(refuting):
        outcome = "not supported"
    shown = [named for named, refutes in zip(deciding, refuting, strict=True) if refutes] or deciding
    name, effect = max(shown, key=lambda named: _against(named[1], side))
    sentence = (
        f"{words}: {outcome} at {effect.seeds} seed{'' if effect.seeds == 1 else 's'}; {name}: {text_of(effect)}."
    )
    return Verdict(claim, sentence, outcome, (*deciding, *others), " ".join(note for note in notes if note))


def text_of(effect: Effect) -> str:
    """An effect as a reader takes it: +0.0123, 95% interval -0.001 to +0.0256."""
    if not effect.seeds:
        return "no value yet"
    if effect.seeds == 1:
        return f"{effect.mean:+.3g}, no interval"
    return f"{effect.mean:+.3g}, 95% interval {effect.low:+.3g} to {effect.high:+.3g}"


def _against(effect: Effect, side: int) -> list[float]:
    """How far its interval, then its mean, reaches to the side that is not claimed."""
    reach = (effect.high if side < 0 else effect.low, effect.mean)
    return [-side * value if math.isfinite(value) else -math.inf for value in reach]


def subjects(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each pipeline and size of D_post, with a name for them; what is compared never mixes these."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_size_of):
        found.setdefault(_subject(row), []).append(row)
    yield from found.items()


def _subject(row: Row) -> str:
    size = f"D_post of {format_size(_size_of(row))} tokens" if SIZE in row["axes"] else None
    return ", ".join(part for part in (pipeline_of(row), size) if part)


def _size_of(row: Row) -> int:
    return parse_size(row["axes"].get(SIZE, 0))
