"""The figure of a study of the law of forgetting (Bethune et al.): forgetting over D, and the law against what was measured."""

from collections.abc import Sequence

import numpy as np

from retain.results.analysis.effects import LEVEL
from retain.results.analysis.sisters.forgetting_law import CONSTANTS, Condition, Fit, conditions, fit
from retain.results.figures.sisters.lines import Line, LineFigure, LinePanel
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size

CURVE_POINTS = 40
FORGOTTEN = "forgetting (nats per token)"


def forgetting_figure(rows: Sequence[Row]) -> LineFigure | None:
    """A panel for each model size with a line for each share, and one of the law; None for a study of another design."""
    planned = conditions(rows)
    if not planned:
        return None
    found = [one for one in planned if one.after]
    law = fit(found)
    sizes = sorted({one.parameters for one in planned})
    panels = [_over_tokens([one for one in found if one.parameters == size], size, law) for size in sizes]
    if law:
        panels.append(_against_law(law))
    missing = sum(row["tokens"] is None for row in rows)
    caption = (
        "Means over seeds; bars from the lowest to the highest. Forgetting is what fine-tuning adds to the loss on "
        f"pretraining text. {law_in_words(law) if law else 'There are too few conditions to fit the law.'}"
    )
    title = "How much does fine-tuning forget, and does one law predict it?"
    return LineFigure("forgetting-law", title, caption, tuple(panels), len(rows), missing)


def law_in_words(found: Fit) -> str:
    """The constants with their intervals, and how well the held-out conditions are predicted, as sentences."""
    named = zip(CONSTANTS, found.law.constants, strict=True)
    if found.seeds > 1:
        parts = [
            f"{name} = {value:.3g} ({found.intervals[name][0]:.2g} to {found.intervals[name][1]:.2g})"
            for name, value in named
        ]
        how = f"; {LEVEL:.0%} intervals by a bootstrap over {found.seeds} seeds"
    else:
        parts, how = [f"{name} = {value:.3g}" for name, value in named], "; one seed has no intervals"
    limits = (
        f" At the end of their range, where the law cannot follow the losses and intervals mean nothing: "
        f"{', '.join(found.at_limits)}."
        if found.at_limits
        else ""
    )
    return (
        f"Dashed: the law L_pt − L_pt⁰ = A · D^β / ((1 + B·p) · N)^α + E with {', '.join(parts)}{how}.{limits} Fine-tunings on "
        f"{format_size(found.heldout_tokens)} tokens were held out from the fit. The law predicts their L_pt with a mean "
        f"absolute error of {found.relative_error():.2%}, which is {found.error_of_forgetting():.0%} of their forgetting."
    )


def _over_tokens(found: Sequence[Condition], size: int, law: Fit | None) -> LinePanel:
    lines = []
    for share in sorted({one.share for one in found}):
        own = [one for one in found if one.share == share]
        name = f"p = {share:.3g}"
        points = tuple((seed, float(one.tokens), value) for one in own for seed, value in one.forgotten.items())
        lines.append(Line(name, points))
        if law:
            tokens = np.geomspace(min(one.tokens for one in own), max(one.tokens for one in own), CURVE_POINTS)
            curve = law.law.forgotten(size, tokens, share)
            lines.append(
                Line(name, tuple((0, float(x), float(y)) for x, y in zip(tokens, curve, strict=True)), computed=True)
            )
    title = f"N = {format_size(size)}" if size else "all models"
    return LinePanel(title, "target tokens D", FORGOTTEN, tuple(lines), log_x=True, compared=True)


def _against_law(law: Fit) -> LinePanel:
    lines = [
        Line(
            name,
            tuple((0, one.measured, one.predicted) for one in law.predictions if one.heldout == heldout),
            joined=False,
        )
        for name, heldout in (("fitted", False), ("held out from the fit", True))
    ]
    return LinePanel(
        "the law against what was measured",
        f"measured {FORGOTTEN}",
        f"predicted {FORGOTTEN}",
        tuple(lines),
        diagonal=True,
    )
