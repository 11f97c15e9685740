"""What looks at growing results do to error rates and seeds, by simulation.

`python -m tools.simulations.sequential_rates [DRAWS]` prints the tables of docs/evidence/verdicts.md: the rule of
`results.claims.looks` against one look at the most seeds, and against naive peeking, which looks as often with plain 95%
intervals and stops at the first that excludes 0.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retain.results.analysis.effects import SIDE, tails
from retain.results.analysis.loss_planes import Floats
from retain.results.claims.looks import Look, running_t
from retain.results.claims.sequential import verdicts_at_looks
from retain.results.claims.verdicts import verdicts
from retain.results.store.study_files import SavedLook, SavedLooks
from tools.simulations.verdict_rates import Scenario, scenarios

SCHEDULES = ((3, 5, 7, 9, 11, 13, 15, 17, 19, 20), (2, 4, 6, 8, 10), (5, 10, 15, 20))
EFFECTS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3)
"""Effects in units of the standard deviation of the paired differences over seeds."""
SHORT, CLAIMS = (3, 5, 7, 9), ("1a", "1b", "2b", "3", "4a")
"""The looks at whole studies, which take longer to simulate, and the claims."""


@dataclass(frozen=True)
class Rule:
    """What one rule does over many studies with one effect."""

    supported: float
    """The share of studies in which the claim that the effect is above 0 is supported."""
    refuted: float
    """The share in which it is not supported."""
    seeds: float
    """The mean number of seeds."""


@dataclass(frozen=True)
class Compared:
    """The three rules at one effect."""

    once: Rule
    """One look at the most seeds."""
    peeking: Rule
    """Plain intervals at all looks."""
    looks: Rule
    """The rule of `results.claims.looks`."""


def compared(effect: float, counts: tuple[int, ...], draws: int, seed: int = 1) -> Compared:
    """The rules for a claim with one effect, which has this mean and the standard deviation 1 over seeds."""
    random = np.random.Generator(np.random.PCG64([seed, *counts]))
    index = np.array(counts)
    t = running_t(random.standard_normal((draws, counts[-1])) + effect, index)
    above, below = tails(t, index - 1), tails(-t, index - 1)
    looks = [Look(number, counts) for number in range(1, len(counts) + 1)]
    over_all = [
        np.stack([look.over_all(tail[:, number]) for number, look in enumerate(looks)], axis=1)
        for tail in (above, below)
    ]
    return Compared(
        _rule(above[:, -1:], below[:, -1:], index[-1:]), _rule(above, below, index), _rule(*over_all, index)
    )


def _rule(above: Floats, below: Floats, counts: Floats) -> Rule:
    """A rule that stops at the first look with a p-value below 2.5%; above, below: [draws, looks]."""
    decided = np.minimum(above, below) < SIDE
    first = np.where(decided.any(axis=1), decided.argmax(axis=1), len(counts) - 1)
    rows = np.arange(len(first))
    return Rule(
        float((above[rows, first] < SIDE).mean()),
        float((below[rows, first] < SIDE).mean()),
        float(counts[first].mean()),
    )


def looked_at(counts: tuple[int, ...]) -> SavedLooks:
    """The record of a study whose looks were all made."""
    made = [
        SavedLook(seeds=look.seeds, level=look.level, time=0.0, verdicts=[])
        for look in (Look(number, counts) for number in range(1, len(counts) + 1))
    ]
    seeds = list(range(counts[-1]))
    return SavedLooks(design="", own=[0], seeds=seeds, counts=list(counts), block=2, made=made)


def whole_studies(scenario: Scenario, counts: tuple[int, ...], draws: int, seed: int = 0) -> tuple[float, float]:
    """How often a claim has its wrong outcome at any look, by plain intervals and by the rule, over simulated studies.

    No study stops early, as another claim may still be undecided. scenario: at the most seeds.
    """
    record, matched = looked_at(counts), scenario.claim[0] == "2"
    plain, ruled = [], []
    for draw in range(draws):
        rows = scenario.rows(np.random.Generator(np.random.PCG64([seed, draw])))
        peeked: dict[str, str] = {}
        for count in counts:
            own = [row for row in rows if row["axes"]["seed"] < count]
            for verdict in verdicts(own, matched):
                if verdict.claim == scenario.claim and peeked.get(verdict.words, "undecided") == "undecided":
                    peeked[verdict.words] = verdict.outcome
        plain += [outcome == scenario.wrong for outcome in peeked.values()]
        found = verdicts_at_looks(rows, matched, record)
        ruled += [verdict.outcome == scenario.wrong for verdict in found if verdict.claim == scenario.claim]
    return float(np.mean(plain)), float(np.mean(ruled))


def level_rows() -> Iterator[str]:
    """The level of the interval at each look of each schedule."""
    for counts in SCHEDULES:
        levels = [f"{Look(number, counts).level:.2%}" for number in range(1, len(counts) + 1)]
        yield f"| {', '.join(map(str, counts))} | {', '.join(levels)} |"


def effect_rows(draws: int) -> Iterator[str]:
    """A row for each schedule and effect."""
    for counts in SCHEDULES:
        for effect in EFFECTS:
            found = compared(effect, counts, draws)
            rules = (found.once, found.peeking, found.looks)
            rates = [f"{rule.supported:.1%} / {rule.refuted:.1%}" for rule in rules]
            seeds = [f"{rule.seeds:.1f}" for rule in rules]
            shown = f"{counts[0]}, {counts[1]}, … {counts[-1]}"
            yield f"| {shown} | {effect:g} | {' | '.join(rates)} | {' | '.join(seeds)} |"


def study_rows(draws: int) -> Iterator[str]:
    """A row for each scenario of whole studies."""
    for scenario in (one for one in scenarios(SHORT[-1]) if one.claim in CLAIMS):
        plain, ruled = whole_studies(scenario, SHORT, draws)
        yield f"| {scenario.words} | {SIDE:.1%} | {plain:.1%} | {ruled:.1%} |"


if __name__ == "__main__":
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    print("| looks at | level of the interval at each look |\n|---|---|")
    print("\n".join(level_rows()))
    print(f"\n{many:,} simulated studies a row.\n")
    print(
        "| looks at | effect | once | peeking | looks | seeds: once | peeking | looks |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(effect_rows(many)), flush=True)
    few = many // 100
    print(f"\n{few:,} whole studies a row, with looks at {', '.join(map(str, SHORT))} seeds.\n")
    print("| the wrong verdict | nominal | peeking | looks |\n|---|---|---|---|")
    for row in study_rows(few):
        print(row, flush=True)
