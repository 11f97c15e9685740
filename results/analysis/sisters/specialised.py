"""Pretraining with the target corpus from the start against pretraining without it (Baek et al., arXiv 2603.16177)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retain.results.analysis.sisters.designs import PRETRAINING
from retain.results.analysis.sisters.interpolation import Amount, amount_for
from retain.results.analysis.sisters.measured import GENERAL, TARGET, losses_at, mean_of
from retain.results.analysis.sisters.overtraining import budget_of
from retain.results.store.loss_table import Row

PLAIN, SPECIALISED = "general", "specialised"
"""What pretraining reads: general text alone, or also the target corpus, again and again."""
NAME = re.compile(rf"({PLAIN}|{SPECIALISED}) (\S+)")


@dataclass(frozen=True)
class Pretrainings:
    """The losses on one corpus after fine-tuning, by what pretraining read, its tokens, and the seed."""

    corpus: str
    plain: Mapping[int, Mapping[int, float]]
    specialised: Mapping[int, Mapping[int, float]]

    @property
    def budgets(self) -> list[int]:
        """The tokens of pretraining that both have, ascending."""
        return sorted(self.plain.keys() & self.specialised.keys())

    def means(self) -> tuple[dict[int, float], dict[int, float]]:
        """The mean loss of each seed over the tokens for which both have results, without and with the target corpus."""
        done = [budget for budget in self.budgets if self.plain[budget] and self.specialised[budget]]
        plain, specialised = (mean_of([one[budget] for budget in done]) for one in (self.plain, self.specialised))
        return plain, specialised

    def needed(self) -> dict[int, Amount]:
        """The tokens of specialised pretraining that reach the loss of the longest plain one, by seed."""
        done = [budget for budget in self.budgets if self.specialised[budget]]
        if len(done) < 2 or done[-1] != self.budgets[-1]:
            return {}
        seeds = set(self.plain[done[-1]]).intersection(*(set(self.specialised[budget]) for budget in done))
        return {
            seed: amount_for(self.plain[done[-1]][seed], done, [self.specialised[budget][seed] for budget in done])
            for seed in sorted(seeds)
        }


def pretraining_of(row: Row) -> tuple[str, int] | None:
    """What pretraining read and its tokens, by the name of its case; None if the name says nothing of it."""
    found = NAME.fullmatch(str(row["axes"].get(PRETRAINING, "")))
    budget = budget_of(found[2]) if found else None
    return (found[1], budget) if found and budget is not None else None


def pretrainings(rows: Iterable[Row]) -> list[Pretrainings]:
    """The losses on the target and on general text; none for a study of another design."""
    rows, made = list(rows), []
    for corpus in (TARGET, GENERAL):
        losses = losses_at(rows, corpus, pretraining_of)
        plain, specialised = (
            {budget: losses[name, budget] for name, budget in sorted(losses) if name == wanted}
            for wanted in (PLAIN, SPECIALISED)
        )
        if plain.keys() & specialised.keys():
            made.append(Pretrainings(corpus, plain, specialised))
    return made
