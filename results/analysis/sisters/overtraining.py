"""The loss after fine-tuning over the tokens of pretraining (Springer et al., arXiv 2503.19206)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from retain.results.analysis.axes import RATE, axis_names
from retain.results.analysis.sisters.designs import BUDGET, is_overtrained
from retain.results.analysis.sisters.measured import GENERAL, TARGET, losses_at, mean_of, slope_of
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import parse_size

CORPORA = (TARGET, GENERAL)


@dataclass(frozen=True)
class Curve:
    """The loss on one corpus after fine-tuning at one rate, over the tokens of pretraining."""

    corpus: str
    rate: float
    losses: Mapping[int, Mapping[int, float]]
    """By tokens of pretraining, ascending, and by seed; without results where a trial has not ended."""

    @property
    def budgets(self) -> list[int]:
        """Every number of tokens of pretraining, ascending."""
        return list(self.losses)

    def slope(self) -> dict[int, float]:
        """The slope over each doubling of pretraining by seed, in nats; without numbers of tokens that have no result."""
        done = [budget for budget in self.budgets if self.losses[budget]]
        return slope_of(np.log2(done).tolist(), [self.losses[budget] for budget in done])

    def turning_point(self) -> int | None:
        """The tokens of pretraining with the lowest mean loss over seeds; None without results."""
        means = {
            budget: float(np.mean(list(losses.values()))) for budget, losses in self.losses.items() if mean_of([losses])
        }
        return min(means, key=means.__getitem__) if means else None


def budget_of(value: object) -> int | None:
    """The tokens that the name of a case says, such as `600k`; None if it names no number above 0."""
    try:
        return parse_size(str(value)) or None
    except ValueError:
        return None


def curves(rows: Iterable[Row]) -> list[Curve]:
    """The curves of a study, by corpus and rate; none for a study of another design."""
    rows = list(rows)
    if not is_overtrained(axis_names(rows)):
        return []

    def point(row: Row) -> tuple[float, int] | None:
        budget, rate = budget_of(row["axes"].get(BUDGET)), row["axes"].get(RATE)
        return None if budget is None or rate is None else (float(rate), budget)

    found = []
    for corpus in CORPORA:
        losses = losses_at(rows, corpus, point)
        for rate in sorted({rate for rate, _ in losses}):
            own = {budget: losses[rate, budget] for one, budget in sorted(losses) if one == rate}
            found.append(Curve(corpus, rate, own))
    return found
