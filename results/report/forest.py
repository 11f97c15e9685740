"""The verdicts as a forest plot: one row a claim and subject, with its interval, its outcome and the seeds that decide it."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retain.results.analysis.axes import grouped
from retain.results.analysis.effects import Effect
from retain.results.analysis.methods import PIPELINES
from retain.results.claims.judging import Verdict
from retain.results.claims.power import MOST, pilot_of, seeds_to_decide
from retain.results.report.cells import DASH, Cell, Rows, Table, table
from retain.sweeps.base.units import counted

MARKS = {"supported": "good", "not supported": "bad"}
"""The class of style.css for each outcome; `open` for the others."""
REACH = 3.0
"""The scale reaches to this many times the largest effect at most; longer intervals are cut with an arrow."""


@dataclass(frozen=True)
class Bar:
    """An interval on its scale, with places in percent. Support for the claim lies on the right; 0 is in the middle."""

    at: float
    start: float | None
    """None without an interval."""
    end: float | None
    cut: str
    """The ends beyond the scale: left, right, `left right` or empty."""


@dataclass(frozen=True)
class ForestRow:
    """One verdict."""

    subject: str
    plane: str
    """The two losses of a frontier, empty for other claims."""
    outcome: str
    mark: str
    bar: Bar | None
    """None without any value yet."""
    effect: Effect
    """As measured, not turned."""
    measure: str
    """What the effect is, with its unit."""
    seeds: str
    """How many seeds decide the claim."""
    sentence: str
    effects: Table
    note: str


@dataclass(frozen=True)
class ForestGroup:
    """The verdicts on one claim."""

    number: str
    name: str
    source: str
    summary: str
    scale: str
    """The end of the scale with its unit."""
    rows: tuple[ForestRow, ...]


def forest(verdicts: Sequence[Verdict]) -> tuple[ForestGroup, ...]:
    """The groups of the plot, each on its own scale."""
    found: list[ForestGroup] = []
    for (number, name), own in grouped(verdicts, lambda one: (one.claim, one.statement.name)).items():
        counts = Counter(one.outcome for one in own)
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        limit = _limit(map(_turned, own))
        rows = tuple(_row(one, limit, f"effects-{len(found)}-{index}", len(verdicts)) for index, one in enumerate(own))
        text = f"{name[0].upper()}{name[1:]}"
        found.append(ForestGroup(number, text, own[0].source, summary, f"{limit:.2g} {_unit(own[0])}", rows))
    return tuple(found)


def _row(verdict: Verdict, limit: float, name: str, total: int) -> ForestRow:
    measure, effect = verdict.told
    mark = MARKS.get(verdict.outcome, "open")
    return ForestRow(
        subject=_titled(verdict.statement.subject),
        plane=verdict.statement.plane,
        outcome=verdict.outcome,
        mark=mark,
        bar=_bar(_turned(verdict), limit) if effect.seeds else None,
        effect=effect,
        measure=measure,
        seeds=seeds_text(verdict),
        sentence=verdict.sentence,
        effects=_effects(verdict, name, total),
        note=verdict.note,
    )


def _titled(subject: str) -> str:
    for pipeline, title in PIPELINES.items():
        subject = subject.replace(pipeline, title)
    return subject


def seeds_text(verdict: Verdict) -> str:
    """How many seeds decide a claim with a chance of 80%, at the effect and the spread seen; at a look, the most that are
    planned."""
    seeds = verdict.told[1].seeds
    if verdict.outcome != "undecided":
        return f"decided at {seeds}"
    if verdict.look is not None:
        return f"at most {verdict.look.counts[-1]}"
    pilot = pilot_of(verdict)
    if pilot is None:
        return "unknown before 2 seeds"
    found = seeds_to_decide(pilot)
    return f"about {found}" if found else f"over {MOST}"


def _effects(verdict: Verdict, name: str, total: int) -> Table:
    """Every effect of a verdict, and its p-values."""
    rows: Rows = [
        [label, Cell(effect.written, effect.mean), effect.interval or DASH, effect.seeds]
        for label, effect in verdict.evidence
        if effect.seeds
    ]
    p, adjusted = (DASH if math.isnan(value) else f"{value:.2g}" for value in (verdict.p, verdict.adjusted))
    caption = f"All effects; p {p}, adjusted for {counted(total, 'verdict')} {adjusted}"
    return table(name, caption, ("effect", "mean", "95% interval", "seeds"), rows)


def _unit(verdict: Verdict) -> str:
    return verdict.told[0].rpartition(", ")[2]


def _turned(verdict: Verdict) -> Effect:
    return verdict.told[1] if verdict.side > 0 else -verdict.told[1]


def _limit(effects: Iterable[Effect]) -> float:
    """The end of a scale that shows all effects and, as far as they are not much longer, all intervals."""
    known = [effect for effect in effects if effect.seeds]
    ends = [abs(end) for effect in known for end in (effect.low, effect.high) if not math.isnan(end)]
    means = [abs(effect.mean) for effect in known]
    return min(max(ends, default=0.0), REACH * max(means, default=0.0)) or max(means, default=0.0) or 1.0


def _bar(effect: Effect, limit: float) -> Bar:
    def place(value: float) -> float:
        return round(50 + 48 * max(-1.0, min(1.0, value / limit)), 2)

    if math.isnan(effect.low):
        return Bar(place(effect.mean), None, None, "")
    cut = [side for side, beyond in (("left", effect.low < -limit), ("right", effect.high > limit)) if beyond]
    return Bar(place(effect.mean), place(effect.low), place(effect.high), " ".join(cut))
