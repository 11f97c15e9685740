"""Claims 9: whether more pretraining raises the loss after fine-tuning, and how that depends on the rate (Springer et al.)."""

from collections.abc import Iterable, Iterator, Sequence

from retain.results.analysis.effects import effect_of, paired_difference
from retain.results.analysis.sisters.overtraining import CORPORA, Curve, curves
from retain.results.claims.judging import Statement, Verdict, judge, subjects
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size

LOSS = {"target": "the fine-tuning corpus", "general": "general text"}


def overtraining_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """The verdicts of a study that varies the tokens of pretraining and the rate of fine-tuning; none for other studies."""
    for subject, group in subjects(rows).items():
        found = curves(group)
        for corpus in CORPORA:
            own = [curve for curve in found if curve.corpus == corpus and len(curve.budgets) > 1]
            about = ", ".join(filter(None, (subject, LOSS[corpus])))
            yield from (_too_much(f"{about}, rate {curve.rate:g}", curve) for curve in own)
            if len(own) > 1:
                yield _sooner(about, own)


def _too_much(subject: str, curve: Curve) -> Verdict:
    """9a: with the most pretraining, the loss is above that with less, for one of the smaller numbers of tokens.

    The lowest of several noisy losses is too low on average, so none is chosen: Holm's correction counts all of them.
    """
    *fewer, most = curve.budgets
    deciding = [
        (
            f"loss after {format_size(most)} minus {format_size(budget)} tokens of pretraining, nats",
            paired_difference(curve.losses[budget], curve.losses[most]),
        )
        for budget in fewer
    ]
    lowest = curve.turning_point()
    note = f"The mean over seeds is lowest after {format_size(lowest)} tokens of pretraining." if lowest else ""
    name = "beyond a point, more pretraining raises the loss after fine-tuning"
    return judge(Statement("9a", name, subject), 1, deciding, notes=(note,), alternatives=len(deciding))


def _sooner(subject: str, own: Sequence[Curve]) -> Verdict:
    """9b: the slope of the loss over doublings of pretraining is larger at the highest rate than at the lowest.

    Where curves turn up lies between few numbers of tokens, so it is told and does not decide.
    """
    low, high = own[0], own[-1]
    slopes = [curve.slope() for curve in (low, high)]
    deciding = [
        (
            f"slope over doublings of pretraining at rate {high.rate:g} minus {low.rate:g}, nats",
            paired_difference(*slopes),
        )
    ]
    others = [
        (f"slope at rate {curve.rate:g}, nats", effect_of(slope))
        for curve, slope in zip((low, high), slopes, strict=True)
    ]
    turning = [
        f"{format_size(lowest)} at rate {curve.rate:g}"
        for curve in own
        if (lowest := curve.turning_point()) is not None
    ]
    note = f"Lowest mean loss after these tokens of pretraining: {', '.join(turning)}." if turning else ""
    name = "more pretraining raises the loss after fine-tuning more, or lowers it less, at higher rates"
    return judge(Statement("9b", name, subject), 1, deciding, others, (note,))
