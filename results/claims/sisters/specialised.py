"""Claims 10: what it is worth to pretrain on the target corpus from the start (Baek et al.)."""

from collections.abc import Iterable, Iterator

from retain.results.analysis.effects import effect_of, paired_difference
from retain.results.analysis.sisters.interpolation import logs_within
from retain.results.analysis.sisters.measured import GENERAL, TARGET
from retain.results.analysis.sisters.specialised import Pretrainings, pretrainings
from retain.results.claims.judging import Statement, Verdict, judge, subjects
from retain.results.store.loss_table import Row

CLAIMS = {
    TARGET: ("10a", "after fine-tuning, the target loss is lower if pretraining repeated the target from the start"),
    GENERAL: ("10b", "after fine-tuning, the loss on general text is lower if pretraining repeated the target"),
}


def specialised_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """The verdicts of a study of specialised pretraining; none for other studies."""
    for subject, group in subjects(rows).items():
        yield from (_lower(subject, found) for found in pretrainings(group))


def _lower(subject: str, found: Pretrainings) -> Verdict:
    """10a and 10b: the loss, averaged over the tokens of pretraining, is lower with the target corpus in it."""
    deciding = [("loss with the target in pretraining minus without, nats", paired_difference(*found.means()))]
    others = [
        (
            f"the same after {budget:,} tokens of pretraining, nats",
            paired_difference(found.plain[budget], found.specialised[budget]),
        )
        for budget in found.budgets
    ]
    needed, note = found.needed() if found.corpus == TARGET else {}, ""
    if needed:
        most = found.budgets[-1]
        saved = {seed: -halvings for seed, halvings in logs_within(needed, most).items()}
        others.append(("halvings of the tokens of pretraining that the same target loss needs", effect_of(saved)))
        fewer = sum(one.beyond == "less" for one in needed.values())
        more = sum(one.beyond == "more" for one in needed.values())
        parts = [f"{fewer} need fewer than {found.budgets[0]:,}"] * bool(fewer) + [f"{more} need more"] * bool(more)
        if parts:
            note = f"Of {len(needed)} seeds {' and '.join(parts)} tokens, beyond the range of the pretrainings."
    return judge(Statement(*CLAIMS[found.corpus], subject), -1, deciding, others, (note,))
