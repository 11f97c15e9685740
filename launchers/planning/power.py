"""`retain power`: how many seeds a study needs for its verdicts, from the spread of a pilot, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.launchers.planning.judged import judged
from retain.launchers.planning.looks import seeds_override
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.plan import PlanTotals, plan_studies
from retain.results.analysis.methods import has_claims
from retain.results.claims.judging import Verdict
from retain.results.claims.power import WANTED, Pilot, pilot_of, seeds_to_decide
from retain.sweeps.base.errors import StudyError


@dataclass(frozen=True)
class AssumedEffect:
    """One deciding effect of a claim, as assumed for planning."""

    label: str
    """What differs, with its unit."""
    mean: float
    """The effect: the pilot's, or the one that was asked for."""
    spread: float
    """The pilot's standard deviation over seeds."""


@dataclass(frozen=True)
class PlannedClaim:
    """How many seeds one claim needs."""

    claim: str
    """The claim's number, such as 1a."""
    source: str
    """Where the paper makes the claim."""
    words: str
    """The subject and the claim."""
    effects: list[AssumedEffect]
    """The deciding effects."""
    seeds: int | None
    """The smallest number of seeds that decides the claim with the wanted chance; None if the most allowed do not."""
    cautious_seeds: int | None
    """The same with the upper 80% limit of the spread, which few seeds know badly."""


@dataclass(frozen=True)
class Price:
    """What a number of seeds costs, and how many claims it decides with the wanted chance."""

    seeds: int
    """The number of seeds: 0, 1, 2 and so on."""
    decides: int
    """The number of claims that need no more seeds."""
    totals: PlanTotals
    """The totals of `retain plan` with these seeds; runs of the store count as trained."""


@dataclass(frozen=True)
class PowerPlan:
    """What `retain power --json` prints."""

    study: str
    """The name of the study."""
    pilot: str
    """The name of the study whose finished trials are the pilot."""
    pilot_seeds: int
    """The number of seeds of the pilot."""
    effect: float | None
    """The effect that was asked for, in each effect's own unit; None for the pilot's effects."""
    chance: float
    """The wanted chance of a decision."""
    most: int
    """The most seeds that were tried."""
    device: str
    """The GPU of `gpu_hours`."""
    claims: list[PlannedClaim]
    """The claims that the pilot tests."""
    prices: list[Price]
    """For each number of seeds that decides one more claim."""


def plan_power(
    study: str,
    overrides: Sequence[str],
    store: Path,
    pilot: str | None = None,
    effect: float | None = None,
    most: int = 20,
    device: str = "H100",
) -> PowerPlan:
    """Plan the seeds of a study from the finished trials of a pilot in the same store; trains nothing.

    pilot: another study, such as a smaller one; by default the study's own finished trials. effect: assume every deciding
    effect to be this far on the claimed side, in its own unit, instead of the pilot's effects, which few seeds know badly.

    Raises StudyError if nothing is claimed about the pilot, or it has no claim with two finished seeds.
    """
    piloted = open_study(pilot or study, () if pilot else overrides, store)
    if not has_claims(piloted.file.study):
        raise StudyError(
            f"{piloted.tree.study}: no claim is about this study, so it has no verdicts to plan seeds for; the paper's claims "
            "are about language models through pretrain, posttrain and finetune"
        )
    pairs = [(verdict, found) for verdict in judged(piloted) if (found := pilot_of(verdict)) is not None]
    if not pairs:
        raise StudyError(
            f"{piloted.tree.study}: the store {store} has no claim of the paper with two finished seeds of this study, so "
            "there is no spread to plan with; run a small part of it with seed=[0,1,2] and give power the same overrides, or "
            "name another study with --pilot"
        )
    claims = [_planned(verdict, found, effect, most) for verdict, found in pairs]
    needed = sorted({seeds for claim in claims for seeds in (claim.seeds, claim.cautious_seeds) if seeds})
    prices = []
    for seeds in needed:
        totals = plan_studies([study], [*overrides, seeds_override(range(seeds))], store, device).totals
        prices.append(Price(seeds, sum(claim.seeds is not None and claim.seeds <= seeds for claim in claims), totals))
    own = piloted if pilot is None else open_study(study, overrides, store)
    pilot_seeds = max(found.seeds for _, found in pairs)
    return PowerPlan(own.tree.study, piloted.tree.study, pilot_seeds, effect, WANTED, most, device, claims, prices)


def _planned(verdict: Verdict, pilot: Pilot, effect: float | None, most: int) -> PlannedClaim:
    assumed = pilot if effect is None else pilot.with_effect(effect)
    labels = [label for label, _ in verdict.evidence[: verdict.deciding]]
    means = (verdict.side * mean for mean in assumed.means)
    effects = [
        AssumedEffect(label, float(mean), float(spread))
        for label, mean, spread in zip(labels, means, assumed.spread, strict=True)
    ]
    seeds, cautious = (seeds_to_decide(one, most) for one in (assumed, assumed.cautious()))
    return PlannedClaim(verdict.claim, verdict.source, verdict.words, effects, seeds, cautious)
