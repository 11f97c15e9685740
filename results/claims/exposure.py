"""Claims 1 and 2 of the paper, those of Figure 3: what exposure λ does to the loss before and after fine-tuning."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.effects import Effect, effect_of, paired_difference
from retain.results.analysis.methods import EXPOSURE, has_losses, seed_of
from retain.results.claims.judging import Verdict, judged, subjects
from retain.results.store.loss_table import Row

IMMEDIATE, RETAINED = "immediate_posttraining_loss", "retained_posttraining_loss"
FLAT = 0.25
"""L_im counts as flat while it changes by less than this share of what mixing saves of L_ret, so that at most a quarter
of the saving could come from a better start. Tied to the saving, it asks the same at every scale; the published curves
of Figure 3a change by up to 24% of it at 30M, 5% at 150M and 2% at 300M."""

Curve = npt.NDArray[np.float64]
"""[k]: a loss at each exposure, nats per token."""


@dataclass(frozen=True)
class Curves:
    """What a study has of one pipeline and size: for each seed both losses over exposure."""

    subject: str
    exposures: Curve
    """[k], ascending."""
    immediate: dict[int, Curve]
    retained: dict[int, Curve]
    notes: tuple[str, ...]

    def change(self, of: Mapping[int, Curve], start: int, end: int) -> Effect:
        """The loss at one exposure less that at another, by their places."""
        return paired_difference(_at(of, start), _at(of, end))

    def slope(self, of: Mapping[int, Curve]) -> Effect:
        """The slope of each seed's least-squares line, nats per unit of λ."""
        centred = self.exposures - self.exposures.mean()
        return effect_of({seed: float(centred @ curve / (centred @ centred)) for seed, curve in of.items()})


def latent_benefit(rows: Iterable[Row]) -> Iterator[Verdict]:
    """Claim 1 (Figure 3a), for additive studies with λ = 0 and another: L_im is nearly flat in λ, L_ret falls with it."""
    for curves in _curves(rows):
        if curves.exposures[0] == 0 and len(curves.exposures) > 1:
            yield _flat(curves)
            yield _falling(curves)


def matched_optimum(rows: Iterable[Row]) -> Iterator[Verdict]:
    """Claim 2 (Figure 3b), for compute-matched studies: L_im worsens with λ, L_ret is best at some 0 < λ < 1."""
    for curves in _curves(rows):
        if curves.exposures[0] == 0 and len(curves.exposures) > 1:
            words = _about(curves, "with compute matched, L_im worsens with λ")
            slope = ("slope of L_im over λ, nats", curves.slope(curves.immediate))
            ends = (f"L_im at λ={curves.exposures[-1]:g} less λ=0, nats", curves.change(curves.immediate, 0, -1))
            notes = (_shape(curves.exposures, curves.immediate, rising=True), *curves.notes)
            yield judged("2a", words, 1, [slope], [ends], notes)
        if {0, 1} < set(curves.exposures.tolist()):
            yield _interior_best(curves)


def _flat(curves: Curves) -> Verdict:
    """|change of L_im| < FLAT · saving, as two linear differences at each λ: both below 0, so both intervals have to be."""
    saving = curves.change(curves.retained, -1, 0)
    beyond, changes = [], []
    for place, exposure in enumerate(curves.exposures[1:], start=1):
        change = curves.change(curves.immediate, 0, place)
        changes.append((f"L_im at λ={exposure:g} less λ=0, nats", change))
        for way, sign in (("rise", 1), ("fall", -1)):
            excess = {seed: sign * change.per_seed[seed] - FLAT * saving.per_seed[seed] for seed in change.per_seed}
            beyond.append((f"{way} of L_im at λ={exposure:g} beyond {FLAT:.0%} of the saving, nats", effect_of(excess)))
    words = _about(curves, f"L_im is flat in λ to within {FLAT:.0%} of what mixing saves of L_ret")
    last = f"saving: L_ret at λ=0 less λ={curves.exposures[-1]:g}, nats"
    return judged("1a", words, -1, beyond, [*changes, (last, saving)], curves.notes)


def _falling(curves: Curves) -> Verdict:
    slope = ("slope of L_ret over λ, nats", curves.slope(curves.retained))
    ends = (f"L_ret at λ={curves.exposures[-1]:g} less λ=0, nats", curves.change(curves.retained, 0, -1))
    notes = (_shape(curves.exposures, curves.retained, rising=False), *curves.notes)
    return judged("1b", _about(curves, "L_ret falls with λ"), -1, [slope], [ends], notes)


def _interior_best(curves: Curves) -> Verdict:
    """The best 0 < λ < 1 against each end. To take the lowest of several noisy values and call it the best would favour the
    claim, so each seed's λ is the one that is best on average over the other seeds. Seeds then share a little through
    that choice; where it takes a λ that is not the best one, it errs against the claim.
    """
    chosen = {}
    for seed in curves.retained:
        others = [curve for other, curve in curves.retained.items() if other != seed] or [curves.retained[seed]]
        chosen[seed] = 1 + int(np.mean(others, axis=0)[1:-1].argmin())
    best = {seed: float(curve[chosen[seed]]) for seed, curve in curves.retained.items()}
    against = [
        (f"L_ret at the best 0 < λ < 1 less λ={end}, nats", paired_difference(_at(curves.retained, place), best))
        for end, place in ((0, 0), (1, -1))
    ]
    words = _about(curves, "with compute matched, L_ret is best at some 0 < λ < 1")
    counts = Counter(f"{curves.exposures[place]:g}" for place in chosen.values())
    how = "the other seeds" if len(chosen) > 1 else "the same seed"
    note = f"The best λ, chosen on {how}: {', '.join(f'{name} ({count}×)' for name, count in counts.items())}."
    return judged("2b", words, -1, against, notes=(note, *curves.notes) if chosen else curves.notes)


def _curves(rows: Iterable[Row]) -> Iterator[Curves]:
    """The curves of each subject, averaged within a seed over the other axes, such as fine-tuning rates.

    Only settings that have both losses at every exposure count, so that all points of a curve average over the same.
    """
    for subject, group in subjects(row for row in rows if EXPOSURE in row["axes"]):
        cells: dict[tuple[int, str], dict[float, Row]] = {}
        for row in group:
            setting = str(sorted((name, str(value)) for name, value in row["axes"].items() if name != EXPOSURE))
            cells.setdefault((seed_of(row), setting), {})[float(row["axes"][EXPOSURE])] = row
        planned = sorted({exposure for cell in cells.values() for exposure in cell})
        finished = [exposure for exposure in planned if any(_done(cell.get(exposure)) for cell in cells.values())]
        exposures = finished if {planned[0], planned[-1]} <= set(finished) else planned
        whole: dict[int, list[list[Row]]] = {}
        for (seed, _), cell in sorted(cells.items()):
            if all(_done(cell.get(exposure)) for exposure in exposures):
                whole.setdefault(seed, []).append([cell[exposure] for exposure in exposures])
        notes = [f"λ={exposure:g} has no result yet." for exposure in planned if exposure not in exposures]
        if missing := len(cells) - sum(map(len, whole.values())):
            notes.append(
                f"{missing} of {len(cells)} settings (seeds counted) lack a result at some λ and are left out."
            )
        immediate, retained = _averages(whole, IMMEDIATE), _averages(whole, RETAINED)
        yield Curves(subject, np.array(exposures), immediate, retained, tuple(notes))


def _done(row: Row | None) -> bool:
    return row is not None and has_losses(row, IMMEDIATE, RETAINED)


def _averages(whole: Mapping[int, Sequence[Sequence[Row]]], loss: str) -> dict[int, Curve]:
    return {
        seed: np.array([[row[loss] for row in cell] for cell in cells]).mean(axis=0) for seed, cells in whole.items()
    }


def _at(of: Mapping[int, Curve], place: int) -> dict[int, float]:
    return {seed: float(curve[place]) for seed, curve in of.items()}


def _shape(exposures: Curve, of: Mapping[int, Curve], rising: bool) -> str:
    """Whether the mean over seeds is monotone, and where it is lowest."""
    if not of:
        return ""
    mean = np.mean(list(of.values()), axis=0)
    steps = np.diff(mean) if rising else -np.diff(mean)
    shape = "monotone" if (steps > 0).all() else "not monotone"
    return f"On the mean over seeds {shape}, lowest at λ={exposures[mean.argmin()]:g}."


def _about(curves: Curves, words: str) -> str:
    return f"{curves.subject}: {words}" if curves.subject else words
