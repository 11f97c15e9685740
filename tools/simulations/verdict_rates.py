"""How often verdicts err, by simulation: `python -m tools.simulations.verdict_rates [DRAWS]` prints the table of verdicts.md.

Each row of the table simulates studies in which the truth is known, judges them with `results.claims`, and counts the wrong
verdicts: by the rule before (each interval at its plain 95%, all checkpoints of a method together) and by the rule now.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retain.results.analysis.effects import SIDE, Effect, effect_of
from retain.results.claims.judging import Outcome, Verdict
from retain.results.claims.power import WANTED, pilot_of, seeds_to_decide
from retain.results.claims.verdicts import verdicts
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES

Random = np.random.Generator
EXPOSURES = (0, 0.25, 0.5, 0.75, 1)
RATES = (0, 1, 2, 3)
NOISE = 0.1
"""The standard deviation of each loss over seeds, in nats; seeds also shift all losses together, which pairing removes."""


@dataclass(frozen=True)
class Scenario:
    """Studies with a known truth, and the outcome that is wrong for a claim."""

    words: str
    rows: Callable[[Random], list[Row]]
    claim: str
    wrong: Outcome


@dataclass(frozen=True)
class Rates:
    """The shares of wrong verdicts in a scenario."""

    before: float
    """By plain intervals, and by all checkpoints of a method together."""
    now: float
    verdicts: int


def error_rates(scenario: Scenario, draws: int, seed: int = 0) -> Rates:
    """The shares of verdicts on the scenario's claim that have its wrong outcome."""
    before, now = [], []
    for draw in range(draws):
        random = np.random.Generator(np.random.PCG64([seed, draw]))
        for verdict in verdicts(scenario.rows(random), matched=scenario.claim[0] == "2"):
            if verdict.claim == scenario.claim:
                before.append(_outcome_before(verdict) == scenario.wrong)
                now.append(verdict.outcome == scenario.wrong)
    return Rates(float(np.mean(before)), float(np.mean(now)), len(now))


def _outcome_before(verdict: Verdict) -> Outcome:
    """The outcome by the rule before: no correction of refutations, and the plain hypervolume gain decides."""
    plain = [effect for label, effect in verdict.evidence if "all checkpoints" in label] or verdict.deciding_effects
    if verdict.alternatives > 1:
        plain = _best_by_other_seeds(plain, verdict.alternatives)
    if all(effect.low > 0 for effect in plain):
        return "supported"
    return "not supported" if any(effect.high < 0 for effect in plain) else "undecided"


def _best_by_other_seeds(effects: Sequence[Effect], alternatives: int) -> list[Effect]:
    """For each seed, the effects of the alternative that is best on average over the other seeds."""
    seeds = sorted(effects[0].per_seed)
    values = np.array([[effect.per_seed[seed] for seed in seeds] for effect in effects])
    values = values.reshape(alternatives, -1, len(seeds))
    others = values[:, 0].sum(axis=1, keepdims=True) - values[:, 0]
    best = others.argmax(axis=0)
    return [effect_of(dict(enumerate(values[best, end, range(len(seeds))]))) for end in range(values.shape[1])]


def exposure_rows(
    random: Random,
    immediate: Callable[[float], float],
    retained: Callable[[float], float],
    seeds: int = 3,
) -> list[Row]:
    """The grid of Figure 3 with these expected losses over exposure."""
    rows = []
    for seed in range(seeds):
        shift = random.normal(0, 0.3)
        for exposure in EXPOSURES:
            before, after = (loss(exposure) + shift + random.normal(0, NOISE) for loss in (immediate, retained))
            rows.append(_row({"pretrain.exposure": exposure, "seed": seed}, before, after, 3.0, 4.0))
    return rows


def frontier_rows(
    random: Random, methods: Sequence[tuple[str, float | None, float]], seeds: int = 3, strays: float = 0.0
) -> list[Row]:
    """Four fine-tuning rates of each method along one curve.

    methods: the name, its rate of dropout (None: not an axis) and how much worse all its losses are, in nats. strays: the
    chance that a run at the highest rate nearly diverges, and ends 3 to 30 nats above its curve in L_ret.
    """
    rows = []
    shifts = random.normal(0, 0.2, seeds)
    for (method, dropout, worse), seed, rate in itertools.product(methods, range(seeds), RATES):
        axes: Row = {"method": method, "finetune.lr": rate, "seed": seed}
        axes |= {} if dropout is None else {"posttrain.dropout": dropout}
        losses = np.array([2 + 0.1 * rate**2, 3 - 0.3 * rate, 4 - 0.1 * rate]) + worse + shifts[seed]
        if strays and rate == RATES[-1] and random.random() < strays:
            losses[0] += random.uniform(3, 30)
        rows.append(_row(axes, 1.5, *(losses + random.normal(0, NOISE, 3))))
    return rows


def _row(axes: Row, *losses: float) -> Row:
    return {"axes": axes, "keys": {}, **dict(zip(LOSSES, map(float, losses), strict=True)), "tokens": 1}


def _two_rates(base: str) -> list[tuple[str, float | None, float]]:
    """A method, and the same with two rates of dropout that change nothing."""
    return [(base, None, 0.0), (f"{base}+dropout", 0.02, 0.0), (f"{base}+dropout", 0.05, 0.0)]


def scenarios(seeds: int) -> Iterator[Scenario]:
    """The scenarios at a number of seeds."""

    def flat(exposure: float) -> float:
        return 1.5

    def boundary(exposure: float) -> float:
        return 1.5 + (0.05 if exposure else 0.0)

    def saving(exposure: float) -> float:
        return 2.2 - (0.2 if exposure == 1 else 0.0)

    both = [*_two_rates("unmixed"), *_two_rates("mixed")]
    yield Scenario(
        "4a: dropout at two rates, which changes nothing, improves the frontier",
        lambda random: frontier_rows(random, _two_rates("mixed"), seeds),
        "4a",
        "supported",
    )
    yield Scenario(
        "4c: dropout at two rates, with mixing that changes nothing, does more than mixing",
        lambda random: frontier_rows(random, [*_two_rates("unmixed")[1:], ("mixed", None, 0.0)], seeds),
        "4c",
        "not supported",
    )
    yield Scenario(
        "4d: two rates of dropout gain more on top of mixing, where nothing changes anything",
        lambda random: frontier_rows(random, both, seeds),
        "4d",
        "supported",
    )
    yield Scenario(
        "4e: mixing on top of two rates of dropout, where nothing changes anything, improves the frontier",
        lambda random: frontier_rows(random, [*_two_rates("unmixed")[1:], *_two_rates("mixed")[1:]], seeds),
        "4e",
        "supported",
    )
    yield Scenario(
        "3: mixing, which changes nothing, improves the frontier",
        lambda random: frontier_rows(random, [("unmixed", None, 0.0), ("mixed", None, 0.0)], seeds),
        "3",
        "supported",
    )
    yield Scenario(
        "3: the same, where one in ten runs at the highest rate nearly diverges",
        lambda random: frontier_rows(random, [("unmixed", None, 0.0), ("mixed", None, 0.0)], seeds, strays=0.1),
        "3",
        "supported",
    )
    yield Scenario(
        "1a: eight intervals at the boundary (no saving, no change of L_im) refute",
        lambda random: exposure_rows(random, flat, flat, seeds),
        "1a",
        "not supported",
    )
    yield Scenario(
        "1a: four of eight intervals at the boundary (L_im rises by 25% of the saving) refute",
        lambda random: exposure_rows(random, boundary, saving, seeds),
        "1a",
        "not supported",
    )
    yield Scenario(
        "1a: four of eight intervals at the boundary support",
        lambda random: exposure_rows(random, boundary, saving, seeds),
        "1a",
        "supported",
    )
    yield Scenario(
        "1b: L_ret is flat; falling is supported",
        lambda random: exposure_rows(random, flat, flat, seeds),
        "1b",
        "supported",
    )
    yield Scenario(
        "2b: L_ret is flat in λ, the boundary; an end is found best",
        lambda random: exposure_rows(random, flat, flat, seeds),
        "2b",
        "not supported",
    )
    yield Scenario(
        "2b: L_ret is equal at all λ > 0 and better than at 0; an interior λ is found best",
        lambda random: exposure_rows(random, flat, lambda exposure: 2.0 if exposure else 2.5, seeds),
        "2b",
        "supported",
    )


def page_errors(draws: int, seeds: int, seed: int = 0) -> tuple[float, float]:
    """The chance that a page has a decided verdict where nothing changes anything: by plain and by adjusted p-values."""
    plain, adjusted = [], []
    for draw in range(draws):
        random = np.random.Generator(np.random.PCG64([seed, draw]))
        found = verdicts(frontier_rows(random, [*_two_rates("unmixed"), *_two_rates("mixed")], seeds))
        plain.append(any(verdict.p < 2 * SIDE for verdict in found))
        adjusted.append(any(verdict.adjusted < 2 * SIDE for verdict in found))
    return float(np.mean(plain)), float(np.mean(adjusted))


def decided_as_planned(draws: int, fall: float, seed: int = 0) -> tuple[int, float]:
    """The seeds that `power` plans for claim 1b from a large pilot, and the share of studies of that size that it decides."""

    def study(random: Random, seeds: int) -> Verdict:
        rows = exposure_rows(random, lambda exposure: 1.5, lambda exposure: 2.0 - fall * exposure, seeds)
        return next(verdict for verdict in verdicts(rows) if verdict.claim == "1b")

    pilot = pilot_of(study(np.random.Generator(np.random.PCG64(seed)), 300))
    planned = pilot and seeds_to_decide(pilot.with_effect(fall))
    assert planned, "the effect must be large enough for a plan"
    streams = (np.random.Generator(np.random.PCG64([seed, draw])) for draw in range(draws))
    decided = [study(stream, planned).outcome != "undecided" for stream in streams]
    return planned, float(np.mean(decided))


def table_rows(draws: int, seeds: int) -> Iterator[str]:
    """The rows of the Markdown table at a number of seeds."""
    for scenario in scenarios(seeds):
        rates = error_rates(scenario, draws)
        yield f"| {scenario.words} | {seeds} | {SIDE:.1%} | {rates.before:.1%} | {rates.now:.1%} |"
    plain, adjusted = page_errors(draws, seeds)
    words = (
        "a page of 12 verdicts, where nothing changes anything, decides one: by plain p (before), by adjusted p (now)"
    )
    yield f"| {words} | {seeds} | {2 * SIDE:.1%} | {plain:.1%} | {adjusted:.1%} |"


if __name__ == "__main__":
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print(f"{many:,} simulated studies a row.\n")
    print("| the wrong verdict | seeds | nominal | before | now |\n|---|---|---|---|---|")
    for row in itertools.chain(table_rows(many, 3), table_rows(many, 8)):
        print(row, flush=True)
    for size in (0.05, 0.1):
        number, share = decided_as_planned(many, size)
        print(f"\n1b: L_ret falls by {size:g} nats: {number} seeds planned for {WANTED:.0%}, decided in {share:.1%}.")
