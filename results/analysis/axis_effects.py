"""What each axis of a study changes in each of its losses, whatever its chain and its axes are.

A value of an axis is compared with the axis's first value at equal values of all other axes, seeds included, so each difference
is of two trials that differ in nothing else. Differences are averaged within a seed; the seed is the unit of repetition. Where
several kinds of seeds vary, such as `seed` and `subset_seed`, the unit is the one of `axes.seed_axis`, and every one of its
values averages over the same values of the others. Seeds that share the compared runs are one unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from retain.results.analysis.axes import (
    axis_names,
    axis_values,
    grouped,
    is_searched,
    repetitions,
    seed_axis,
    seed_of,
    setting,
    varied_axes,
)
from retain.results.analysis.effects import Effect, effect_of, over_repetitions
from retain.results.analysis.loss_planes import L_FT, L_PRE
from retain.results.store.loss_table import Row, chain_of, loss_at, loss_columns, named_losses
from retain.sweeps.schema.section import LOSSES, is_metric, without_value

ROUNDING = 1e-12
"""Losses that differ by less, relative to them or in their unit, are equal: the rest is the arithmetic of the linear model."""
Pair = tuple[int, tuple[str, ...], Row, Row]
"""The seed of two trials, their setting of the other axes, the trial at the first value of an axis, and that at another."""


@dataclass(frozen=True)
class AxisEffect:
    """A loss at one value of an axis minus that at the axis's first value, in the unit of the loss."""

    axis: str
    value: Any
    against: Any
    loss: str
    """One of the paper's four, STAGE/CORPUS or STAGE/TASK/METRIC."""
    effect: Effect
    settings: int
    """The settings of the other axes that each seed is averaged over; values of further seeds count as settings."""


def axis_effects(rows: Sequence[Row]) -> list[AxisEffect]:
    """The effects of all axes that vary, in the order of the study; those on stages above an axis, which are 0, are left out.

    Only settings count that are finished at both values at all seeds, so that seeds average over the same. Losses on different
    corpora are not compared. The losses are the paper's, or all of the matrix where the chain has at most one of them, and the
    metrics of tasks. Empty for searched points, which differ in several fields at once.
    """
    if any(map(is_searched, rows)):
        return []
    losses, found = _compared_losses(rows), list[AxisEffect]()
    for axis in varied_axes(rows):
        others = [name for name in axis_names(rows) if name != axis]
        having = [row for row in rows if axis in row["axes"]]
        first, *values = axis_values(having, axis)
        by_value = grouped(having, partial(setting, axes=[axis]))
        base = {setting(row, others): row for row in by_value[repr(first),]}
        for value in values:
            pairs = [
                (seed_of(row), _within_seed(row, others), base[key], row)
                for row in by_value[repr(value),]
                if (key := setting(row, others)) in base
            ]
            repetition = repetitions([[one for _, _, one, _ in pairs], [other for _, _, _, other in pairs]])
            for loss in losses:
                effect, settings = _effect(pairs, loss, repetition)
                if any(effect.per_seed.values()):
                    found.append(AxisEffect(axis, value, first, loss, effect, settings))
    return found


def _within_seed(row: Row, axes: Sequence[str]) -> tuple[str, ...]:
    unit = seed_axis(row)
    return setting(row, [name for name in axes if name != unit])


def _compared_losses(rows: Sequence[Row]) -> list[str]:
    named, columns = named_losses(rows), loss_columns(rows)
    if len(named) > 1:
        return [*named, *(name for name in columns if is_metric(name))]
    return [name for name in columns if name == without_value(name)]


def _corpus_of(row: Row, loss: str) -> str | None:
    """The corpus of one of the paper's four losses of a trial; None if the row does not say, and for other losses."""
    corpora: Mapping[str, str] = row.get("corpora", {})
    if loss == L_FT:
        return corpora.get(chain_of(row)[-1], corpora.get("finetuning"))
    return corpora.get("pretraining" if loss == L_PRE else "posttraining") if loss in LOSSES else None


def _effect(pairs: Sequence[Pair], loss: str, repetition: Mapping[int, int]) -> tuple[Effect, int]:
    """The mean difference of pairs, and over how many settings of the other axes. repetition: as in `axes.repetitions`."""
    by_seed: dict[int, dict[tuple[str, ...], float]] = {}
    for seed, others, one, other in pairs:
        before, after = loss_at(one, loss), loss_at(other, loss)
        if _corpus_of(one, loss) != _corpus_of(other, loss):
            continue
        if before is not None and after is not None and math.isfinite(before) and math.isfinite(after):
            equal = math.isclose(before, after, rel_tol=ROUNDING, abs_tol=ROUNDING)
            by_seed.setdefault(seed, {})[others] = 0.0 if equal else after - before
    shared = set.intersection(*map(set, by_seed.values())) if by_seed else set()
    means = {seed: fmean(own[key] for key in shared) for seed, own in sorted(by_seed.items()) if shared}
    return over_repetitions(effect_of(means), repetition), len(shared)
