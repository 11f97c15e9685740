"""Claims 7: what pretraining text in fine-tuning, and the size of the model, do to forgetting (Bethune et al.)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from retain.results.analysis.effects import effect_of
from retain.results.analysis.sisters.forgetting_law import Condition, conditions
from retain.results.analysis.sisters.measured import mean_of, slope_of
from retain.results.claims.judging import Statement, Verdict, judge, subjects
from retain.results.store.loss_table import Row

ONE_PERCENT = 0.01
MOST = 0.5
"""Most of the forgetting is more than this share of it."""


def forgetting_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """The verdicts of a study that varies tokens and shares of fine-tuning; none for other studies."""
    for subject, group in subjects(rows).items():
        found = conditions(group)
        yield from _one_percent(subject, found)
        yield from _smaller_models(subject, found)


def _one_percent(subject: str, found: Sequence[Condition]) -> Iterator[Verdict]:
    """7a: at 1% less than half of the forgetting without any is left, over the same sizes and tokens.

    A difference, as a ratio of two small numbers has no interval.
    """
    without = {one.point[:2]: one for one in found if one.share == 0}
    with_some = {one.point[:2]: one for one in found if one.share == ONE_PERCENT}
    if not with_some or not without:
        return
    plain, mixed = _means(without, with_some)
    excess = {seed: mixed[seed] - (1 - MOST) * plain[seed] for seed in plain}
    removed = {seed: 1 - mixed[seed] / plain[seed] for seed in plain if plain[seed] > 0}
    others = [
        ("share of the forgetting that 1% removes", effect_of(removed)),
        ("forgetting without pretraining text, nats", effect_of(plain)),
        ("forgetting with 1%, nats", effect_of(mixed)),
    ]
    name = "1% of pretraining text in fine-tuning removes most of the forgetting"
    deciding = [(f"forgetting with 1% beyond {1 - MOST:.0%} of that without, nats", effect_of(excess))]
    yield judge(Statement("7a", name, subject), -1, deciding, others)


def _means(
    first: Mapping[tuple[int, int], Condition], second: Mapping[tuple[int, int], Condition]
) -> tuple[dict[int, float], dict[int, float]]:
    """The mean forgetting of each seed over the sizes and tokens with results of both, for the seeds that have them all."""
    shared = sorted(point for point in first.keys() & second.keys() if first[point].after and second[point].after)
    plain, mixed = (mean_of([part[point].forgotten for point in shared]) for part in (first, second))
    seeds = sorted(plain.keys() & mixed.keys())
    return {seed: plain[seed] for seed in seeds}, {seed: mixed[seed] for seed in seeds}


def _smaller_models(subject: str, found: Sequence[Condition]) -> Iterator[Verdict]:
    """7b: the slope of the forgetting without pretraining text over the logarithm of N is below 0."""
    plain = [one for one in found if one.share == 0]
    sizes = sorted({one.parameters for one in plain})
    if len(sizes) < 2 or not sizes[0]:
        return
    done = [one for one in plain if one.after]
    tokens = set.intersection(*({one.tokens for one in done if one.parameters == size} for size in sizes))
    counted = [one for one in done if one.tokens in tokens]
    curves = [mean_of([one.forgotten for one in counted if one.parameters == size]) for size in sizes]
    slopes = slope_of(np.log2(sizes).tolist(), curves)
    ends = {seed: curves[0][seed] - curves[-1][seed] for seed in slopes}
    deciding = [("slope of the forgetting over log2 of the parameters, nats", effect_of(slopes))]
    others = [("forgetting of the smallest minus the largest model, nats", effect_of(ends))]
    yield judge(Statement("7b", "smaller models forget more", subject), -1, deciding, others)
