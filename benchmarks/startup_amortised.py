"""What compiling gains over whole studies: its seconds counted in, and shared by all tokens of all stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import retain
from benchmarks.report import markdown_table

STUDIES = ("laptop", "laptop-figure2", "laptop-figure3a")
PACK = 8
COLUMNS = (
    "of Trainer's speed", "stages", "tokens", "not compiled (`compile: auto`)", "compiled, each from an empty cache",
    "compiled, one cache", f"compiled, one cache, packs of {PACK}",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Seconds of a loop."""

    token: float
    start: float
    """Before the first steps of a process."""


@dataclass(frozen=True)
class Counted:
    """A study as `retain plan` counts it."""

    name: str
    stages: int
    tokens: int
    """At most, of all stages."""
    jobs: int
    """Processes, up to PACK siblings to each."""


def counted(study: str, store: Path) -> Counted:
    """Of a store that has none of its runs."""
    totals = retain.plan(study, [f"execution.pack={PACK}"], store).totals
    return Counted(study, totals.stages, totals.tokens, totals.jobs)


def amortised(studies: Sequence[Counted], trainer: Cost, eager: Cost, compiled: Cost, cached: float) -> str:
    """A table of speeds as multiples of Trainer's.

    compiled: from an empty cache; cached: the seconds before the first steps of a process that finds its code in the cache.
    """
    rows = []
    for study in studies:
        theirs = study.tokens * trainer.token + study.stages * trainer.start
        first = compiled.start - cached
        ours = (
            study.tokens * eager.token + study.stages * eager.start,
            study.tokens * compiled.token + study.stages * compiled.start,
            study.tokens * compiled.token + study.stages * cached + first,
            study.tokens * compiled.token + study.jobs * cached + first,
        )
        counts = (study.name, f"{study.stages:,}", f"{study.tokens / 1e6:.1f}M")
        rows.append([*counts, *(f"{theirs / seconds:.2f}" for seconds in ours)])
    return markdown_table(COLUMNS, rows)
