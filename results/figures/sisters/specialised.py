"""The figure of a study of specialised pretraining: the losses after fine-tuning over the tokens of pretraining."""

from collections.abc import Mapping, Sequence

from retain.results.analysis.sisters.measured import GENERAL, TARGET
from retain.results.analysis.sisters.specialised import Pretrainings, pretrainings
from retain.results.figures.sisters.lines import Line, LineFigure, LinePanel
from retain.results.store.loss_table import Row

TITLES = {TARGET: "loss on the target", GENERAL: "loss on general text"}


def specialised_figure(rows: Sequence[Row]) -> LineFigure | None:
    """A panel for each corpus, with a line for each kind of pretraining; None for a study of another design."""
    found = pretrainings(rows)
    if not found:
        return None
    missing = sum(row["tokens"] is None for row in rows)
    caption = "Means over seeds; bars from the lowest to the highest. Both kinds have the same tokens and fine-tuning."
    title = "Is a target corpus better seen from the start of pretraining?"
    return LineFigure("specialised", title, caption, tuple(map(_panel, found)), len(rows), missing)


def _panel(found: Pretrainings) -> LinePanel:
    lines = (
        Line("general text alone", _points(found.plain)),
        Line("target from the start", _points(found.specialised)),
    )
    y = "after fine-tuning (nats per token)"
    return LinePanel(TITLES[found.corpus], "tokens of pretraining", y, lines, log_x=True)


def _points(losses: Mapping[int, Mapping[int, float]]) -> tuple[tuple[int, float, float], ...]:
    return tuple((seed, float(budget), loss) for budget, own in losses.items() for seed, loss in own.items())
