"""How the recommended recipe of a search compares on fresh seeds, for the page of the study that confirms it."""

from collections.abc import Sequence

from retain.results.analysis.effects import Effect
from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.analysis.recipe_comparison import frontier_contrasts, loss_contrasts
from retain.results.report.cells import Cell, Rows, Table, table
from retain.results.store.loss_table import Row


def recipe_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Frontiers and losses of the recommended recipe against every other; empty if the study compares no recipes."""
    frontiers: Rows = [
        [
            f"({SYMBOLS[one.plane.y]} over {SYMBOLS[one.plane.x]}) {one.other}",
            _effect(one.gain, better=1),
            _effect(one.gap, better=-1),
            one.gain.seeds,
            f"{one.checkpoints[0]} and {one.checkpoints[1]}",
        ]
        for one in frontier_contrasts(rows)
    ]
    losses: Rows = [
        [f"{SYMBOLS[one.loss]} {one.other}", _effect(one.difference, better=-1), one.difference.seeds]
        for one in loss_contrasts(rows)
    ]
    columns = (
        "plane and other recipe",
        "hypervolume gained, squared nats (above 0 is better)",
        "height at equal x, nats (below 0 is better)",
        "seeds",
        "checkpoints per seed (at most)",
    )
    made = [
        table("recipe-frontiers", "The recommended frontier minus that of the other recipe", columns, frontiers),
        table(
            "recipe-losses",
            "The recommended recipe's losses minus those of the other, over the same fine-tunings",
            ("loss and other recipe", "difference, nats (below 0 is better)", "seeds"),
            losses,
        ),
    ]
    return tuple(one for one in made if one.rows)


def _effect(effect: Effect, better: int) -> Cell:
    """An effect with its interval, marked good or bad if the whole interval lies on one side of 0."""
    if effect.seeds == 0:
        return Cell("no x in common")
    certain = effect.low * effect.high > 0
    return Cell(str(effect), mark=("good" if better * effect.mean > 0 else "bad") if certain else "")
