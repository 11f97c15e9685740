"""What each axis changes in each loss, and how the recommended recipe of a search compares on fresh seeds."""

from collections.abc import Collection, Sequence

from retain.results.analysis.axis_effects import AxisEffect
from retain.results.analysis.effects import Effect
from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.analysis.recipe_comparison import FrontierContrast, frontier_contrasts, loss_contrasts
from retain.results.report.cells import DASH, Cell, Rows, Table, table, value_text
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import is_metric

_FRONTIERS = (
    "The recommended recipe's frontier minus that of the other recipe: a hypervolume above 0 and a height below 0 are better. "
    "More checkpoints alone make a frontier better, so only frontiers of equally many are marked as better or worse"
)


def axis_table(effects: Sequence[AxisEffect], higher: Collection[str], unit: str) -> Table:
    """A row for each loss at each further value of an axis. higher: the losses where a higher value is better."""
    rows: Rows = [
        [
            one.axis,
            value_text(one.value),
            value_text(one.against),
            SYMBOLS.get(one.loss, one.loss),
            Cell(one.effect.written, one.effect.mean),
            _interval(one.effect, better=1 if one.loss in higher else -1),
            one.effect.seeds,
            one.settings,
        ]
        for one in effects
    ]
    columns = ("axis", "at", "against", "loss", "difference", "95% interval", "seeds", "settings")
    caption = f"Differences between values of one axis, in {unit}"
    if any(is_metric(one.loss) for one in effects):
        caption += "; those of STAGE/NAME/METRIC in the unit of the metric"
    return table("axis-effects", caption, columns, rows, filters=4)


def recipe_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Frontiers and losses of each recommended recipe against every other; empty if the study compares no recipes."""
    frontiers: Rows = [
        [
            one.plane.name,
            one.recipe,
            one.other,
            _effect(one.gain, better=1 if _is_even(one) else 0),
            _effect(one.gap, better=-1 if _is_even(one) else 0),
            one.gain.seeds,
            f"{one.checkpoints[0]} and {one.checkpoints[1]}",
        ]
        for one in frontier_contrasts(rows)
    ]
    losses: Rows = [
        [SYMBOLS[one.loss], one.recipe, one.other, _effect(one.difference, better=-1), one.difference.seeds]
        for one in loss_contrasts(rows)
    ]
    columns = (
        "plane",
        "recipe",
        "against",
        "hypervolume, squared nats",
        "height at equal x, nats",
        "seeds",
        "checkpoints per seed",
    )
    made = [
        table("recipe-frontiers", _FRONTIERS, columns, frontiers, filters=3),
        table(
            "recipe-losses",
            "The recommended recipe's losses minus those of the other recipe, over the same fine-tunings: below 0 is better",
            ("loss", "recipe", "against", "difference, nats", "seeds"),
            losses,
            filters=3,
        ),
    ]
    return tuple(one for one in made if one.rows)


def _is_even(contrast: FrontierContrast) -> bool:
    """Whether both frontiers have equally many checkpoints."""
    return len(set(contrast.checkpoints)) == 1


def _effect(effect: Effect, better: int) -> Cell:
    """An effect with its interval, marked good or bad if the whole interval lies on one side of 0.

    better: the side that is better; 0 for an effect that shows nothing either way.
    """
    text = f"{effect.written} ({effect.interval})" if effect.interval else effect.written
    return Cell(text, effect.mean, _mark(effect, better)) if effect.seeds else Cell("no x in common")


def _interval(effect: Effect, better: int) -> Cell:
    """The interval of an effect, marked as `_effect` does."""
    return Cell(effect.interval or DASH, mark=_mark(effect, better))


def _mark(effect: Effect, better: int) -> str:
    certain = better and effect.low * effect.high > 0
    return ("good" if better * effect.mean > 0 else "bad") if certain else ""
