"""Claims 1 and 2 of the paper (Figure 3): what exposure λ does to the loss before and after fine-tuning."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retain.results.analysis.axes import EXPOSURE, axis_names, grouped, repetitions, seed_of, setting
from retain.results.analysis.effects import Effect, effect_of, least_squares_slope, paired_difference
from retain.results.analysis.loss_planes import L_IM, L_RET, SYMBOLS, Floats, has_losses
from retain.results.claims.judging import Statement, Verdict, judge, shared_runs, subjects
from retain.results.store.loss_table import Row

FLAT = 0.25
"""L_im counts as flat while it changes by less than this share of what mixing saves of L_ret, so that at most a quarter
of the saving could come from a better start. Tied to the saving, the bound asks the same at every scale; the published
curves of Figure 3a change by up to 24% of it at 30M, 5% at 150M and 2% at 300M."""


@dataclass(frozen=True)
class Curves:
    """Both losses over exposure, for one pipeline and size of D_post."""

    subject: str
    exposures: Floats
    """[k], ascending."""
    losses: Mapping[str, Mapping[int, Floats]]
    """The curve of each seed, for L_im and L_ret: [k], the loss at each exposure in nats per token. Seeds that share the
    compared runs have one curve, their mean."""
    notes: tuple[str, ...]

    def at(self, loss: str, index: int) -> dict[int, float]:
        """The loss of each seed at the exposure with this index."""
        return {seed: float(curve[index]) for seed, curve in self.losses[loss].items()}

    def change(self, loss: str, start: int, end: int) -> Effect:
        """The loss at the exposure with index `end` minus that at index `start`."""
        return paired_difference(self.at(loss, start), self.at(loss, end))

    def ends(self, loss: str) -> tuple[str, Effect]:
        """The change from no exposure to the highest, with its name."""
        return f"{SYMBOLS[loss]} at λ={self.exposures[-1]:g} minus λ=0, nats", self.change(loss, 0, -1)

    def slope(self, loss: str) -> tuple[str, Effect]:
        """The slope of each seed's least-squares line, in nats per unit of λ, with its name."""
        slopes = {seed: least_squares_slope(self.exposures, curve) for seed, curve in self.losses[loss].items()}
        return f"slope of {SYMBOLS[loss]} over λ, nats", effect_of(slopes)

    def shape(self, loss: str, rising: bool) -> str:
        """Whether the mean over seeds is monotone, and where it is lowest."""
        if not self.losses[loss]:
            return ""
        mean = np.mean(list(self.losses[loss].values()), axis=0)
        steps = np.diff(mean) if rising else -np.diff(mean)
        shape = "monotone" if (steps > 0).all() else "not monotone"
        return f"The mean over seeds is {shape}, lowest at λ={self.exposures[mean.argmin()]:g}."


def latent_benefit(rows: Iterable[Row]) -> Iterator[Verdict]:
    """Claim 1 (Figure 3a), for additive studies with λ = 0 and another λ: L_im is nearly flat in λ, L_ret falls with it."""
    for curves in _curves(rows):
        if curves.exposures[0] == 0 and len(curves.exposures) > 1:
            yield _flat(curves)
            yield _sloped("1b", "L_ret falls with λ", curves, L_RET, -1)


def matched_optimum(rows: Iterable[Row]) -> Iterator[Verdict]:
    """Claim 2 (Figure 3b), for compute-matched studies: L_im worsens with λ, L_ret is best at some 0 < λ < 1."""
    for curves in _curves(rows):
        if curves.exposures[0] == 0 and len(curves.exposures) > 1:
            yield _sloped("2a", "with compute matched, L_im worsens with λ", curves, L_IM, 1)
        if {0, 1} < set(curves.exposures.tolist()):
            yield _interior_best(curves)


def _flat(curves: Curves) -> Verdict:
    """|change of L_im| < FLAT · saving, as two linear differences at each λ; both must lie below 0."""
    saving = curves.change(L_RET, -1, 0)
    beyond, changes = [], []
    for index, exposure in enumerate(curves.exposures[1:], start=1):
        change = curves.change(L_IM, 0, index)
        changes.append((f"L_im at λ={exposure:g} minus λ=0, nats", change))
        for way, sign in (("rise", 1), ("fall", -1)):
            excess = {seed: sign * change.per_seed[seed] - FLAT * saving.per_seed[seed] for seed in change.per_seed}
            beyond.append((f"{way} of L_im at λ={exposure:g} beyond {FLAT:.0%} of the saving, nats", effect_of(excess)))
    name = f"L_im is flat in λ to within {FLAT:.0%} of what mixing saves of L_ret"
    last = f"saving: L_ret at λ=0 minus λ={curves.exposures[-1]:g}, nats"
    return judge(Statement("1a", name, curves.subject), -1, beyond, [*changes, (last, saving)], curves.notes)


def _sloped(claim: str, name: str, curves: Curves, loss: str, side: Literal[-1, 1]) -> Verdict:
    """The claim that a loss falls (side -1) or rises (side 1) with λ."""
    notes = (curves.shape(loss, rising=side > 0), *curves.notes)
    statement = Statement(claim, name, curves.subject)
    return judge(statement, side, [curves.slope(loss)], [curves.ends(loss)], notes)


def _interior_best(curves: Curves) -> Verdict:
    """Each 0 < λ < 1 against both ends: the claim is that one of them is below both.

    The lowest of several noisy values is too low on average, which would favour the claim. So no λ is chosen; Holm's correction
    counts all of them.
    """
    end = len(curves.exposures) - 1
    against = [
        (f"L_ret at λ={exposure:g} minus λ={curves.exposures[other]:g}, nats", curves.change(L_RET, other, index))
        for index, exposure in enumerate(curves.exposures[1:-1], start=1)
        for other in (0, end)
    ]
    statement = Statement("2b", "with compute matched, L_ret is best at some 0 < λ < 1", curves.subject)
    notes = (curves.shape(L_RET, rising=False), *curves.notes)
    return judge(statement, -1, against, notes=notes, alternatives=end - 1)


def _curves(rows: Iterable[Row]) -> Iterator[Curves]:
    """The curves of each subject, averaged within a seed over the other axes, such as fine-tuning rates.

    Only settings with both losses at every exposure count, so that all points of a curve average over the same settings.
    """
    for subject, group in subjects(row for row in rows if EXPOSURE in row["axes"]).items():
        settings = _by_exposure(group)
        planned = sorted({exposure for own in settings for exposure in own})
        finished = [exposure for exposure in planned if any(_done(own.get(exposure)) for own in settings)]
        exposures = finished if {planned[0], planned[-1]} <= set(finished) else planned
        whole = [own for own in settings if all(_done(own.get(exposure)) for exposure in exposures)]
        notes = [f"λ={exposure:g} has no result yet." for exposure in planned if exposure not in exposures]
        if missing := len(settings) - len(whole):
            notes.append(
                f"{missing} of {len(settings)} settings (counting seeds) lack a result at some λ and are left out."
            )
        repetition = repetitions([[own[exposure] for own in whole] for exposure in exposures])
        notes.append(shared_runs(repetition))
        by_seed: dict[int, list[dict[float, Row]]] = {}
        for own in whole:
            by_seed.setdefault(repetition[seed_of(next(iter(own.values())))], []).append(own)
        losses = {
            loss: {
                seed: np.mean([[one[x][loss] for x in exposures] for one in own], axis=0)
                for seed, own in sorted(by_seed.items())
            }
            for loss in (L_IM, L_RET)
        }
        yield Curves(subject, np.array(exposures), losses, tuple(notes))


def _by_exposure(rows: Sequence[Row]) -> list[dict[float, Row]]:
    """The rows of each setting (the seed is part of it) by exposure."""
    others = [name for name in axis_names(rows) if name != EXPOSURE]
    same = grouped(rows, lambda row: setting(row, others))
    return [{float(row["axes"][EXPOSURE]): row for row in own} for own in same.values()]


def _done(row: Row | None) -> bool:
    return row is not None and has_losses(row, L_IM, L_RET)
