"""The figure of a study of overtraining: the loss after fine-tuning over the tokens of pretraining, a line for each rate."""

from collections.abc import Sequence

from retain.results.analysis.sisters.overtraining import CORPORA, curves
from retain.results.figures.sisters.lines import Line, LineFigure, LinePanel
from retain.results.store.loss_table import Row

TITLES = {"target": "loss on the fine-tuning corpus", "general": "loss on general text"}


def overtraining_figure(rows: Sequence[Row]) -> LineFigure | None:
    """A panel for each corpus; None for a study of another design."""
    found = curves(rows)
    if not found:
        return None
    panels = tuple(
        LinePanel(
            TITLES[corpus],
            "tokens of pretraining",
            "after fine-tuning (nats per token)",
            tuple(
                Line(
                    f"rate {curve.rate:g}",
                    tuple(
                        (seed, float(budget), loss)
                        for budget, losses in curve.losses.items()
                        for seed, loss in losses.items()
                    ),
                )
                for curve in found
                if curve.corpus == corpus
            ),
            log_x=True,
        )
        for corpus in CORPORA
    )
    missing = sum(row["tokens"] is None for row in rows)
    caption = "Means over seeds; bars from the lowest to the highest."
    title = "Does more pretraining make fine-tuning worse?"
    return LineFigure("overtrained", title, caption, panels, len(rows), missing)
