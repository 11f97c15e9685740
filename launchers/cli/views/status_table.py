"""The table of `retain status`: the tree of runs, in the columns for which the terminal has room."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retain.launchers.console import new_table
from retain.results.store.status import RunStatus, in_tree_order, rows_by_stage
from retain.sweeps.base.units import counted, format_seconds, format_size
from retain.sweeps.tree.tree import axes_label

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "queued": "yellow",
    "cancelled": "red",
    "damaged": "red",
}
PRIORITY = ("damaged", "failed", "cancelled", "running", "queued", "skipped", "planned", "done")
"""The order in which states are kept when not all runs can be printed."""
COLUMNS = ("run", "stage", "axes", "state", "attempts", "progress", "loss", "tokens/s", "left", "job", "reason")
DROPPED = ("reason", "tokens/s", "attempts", "loss", "job", "progress", "left")
"""The columns that a narrow terminal leaves out, in this order; the reasons are then printed below the table."""
SHORTEST_AXES = 12
"""Letters of an axis that a table shows at least; longer labels are cut if nothing else can be left out."""
GAP = 2
"""Letters between two columns."""
MOST_REASONS = 12
"""The most reasons, and paths of logs, below a table; --json has all."""


def most_important(rows: Sequence[RunStatus], most: int) -> Sequence[RunStatus]:
    """At most `most` rows in their order: runs that failed or are active before those that are done or planned."""
    if len(rows) <= most:
        return rows
    rank = {state: number for number, state in enumerate(PRIORITY)}
    chosen = sorted(range(len(rows)), key=lambda number: rank.get(rows[number].state, 0))[: max(0, most)]
    return [rows[number] for number in sorted(chosen)]


def state_counts(rows: Sequence[RunStatus]) -> str:
    """`3 done, 1 failed`."""
    states = Counter(row.state for row in rows)
    return ", ".join(f"{count:,} {state}" for state, count in states.items())


def summary_lines(rows: Sequence[RunStatus], left: float | None = None) -> list[str]:
    """A line for all runs, with the time that is left for the study (in seconds), and one for each stage, with counts."""
    about = "" if left is None else f"; about {format_seconds(left)} left"
    if not rows:
        return ["no runs"]
    stages = rows_by_stage(rows)
    lines = [f"{counted(len(rows), 'run')}: {state_counts(rows)}{about}"]
    width = max(map(len, stages))
    return lines + [f"{stage:<{width}}  {state_counts(some)}" for stage, some in stages.items() if len(stages) > 1]


def status_table(rows: Sequence[RunStatus], shown: Sequence[RunStatus], width: int | None = None) -> "Table":
    """A row for each run that is shown, children indented below their parents, with the counts of all runs as the title.

    width: of the terminal, in letters; columns that do not fit are left out. By default all columns are shown.
    """
    from rich.text import Text

    cells = _cells(rows, shown)
    columns, axes = _fitting(cells, width)
    table = new_table(*columns)
    for column in table.columns:
        column.no_wrap, column.overflow = width is not None, "fold" if width is None else "ellipsis"
    table.title, table.title_justify = state_counts(rows) or "no runs", "left"
    for row in cells:
        shortened = {**row, "axes": _cut(row["axes"], axes)}
        colour = {"state": COLOURS.get(row["state"], "dim")}
        table.add_row(*(Text(shortened[name], style=colour.get(name, "")) for name in columns))
    return table


def reasons_below(shown: Sequence[RunStatus], width: int) -> list[str]:
    """The reasons of runs, each once with the keys that it applies to; empty if the table of this width has them."""
    columns, _ = _fitting(_cells(shown, shown), width)
    if "reason" in columns:
        return []
    keys: dict[str, list[str]] = {}
    for row in shown:
        if row.reason:
            keys.setdefault(row.reason, []).append(row.key[:8])
    lines = [
        f"{' '.join(some[:3])}{f' and {len(some) - 3:,} more' if len(some) > 3 else ''}: {reason}"
        for reason, some in keys.items()
    ]
    more = [f"{counted(len(lines) - MOST_REASONS, 'more reason')} with --json"] if len(lines) > MOST_REASONS else []
    return lines[:MOST_REASONS] + more


def _cells(rows: Sequence[RunStatus], shown: Sequence[RunStatus]) -> list[Mapping[str, str]]:
    """The texts of each row by column, in the order of the tree."""
    all_rows = {row.key: row for row in rows}
    visible = {row.key for row in shown}
    return [_texts(row, all_rows, visible) for row in in_tree_order(rows) if row.key in visible]


def _texts(row: RunStatus, rows: Mapping[str, RunStatus], visible: set[str]) -> dict[str, str]:
    depth, above = 0, rows.get(row.parent or "")
    # A run's own axes are enough below its parent; a parent that is not shown says nothing.
    inherited = above.axes if above and above.key in visible else {}
    while above:
        depth += above.key in visible
        above = rows.get(above.parent or "")
    own = {
        axis.removeprefix(f"{row.stage}."): _short(value)
        for axis, value in row.axes.items()
        if axis not in inherited or inherited[axis] != value
    }
    return {
        "run": row.key[:8],
        "stage": f"{' ' * depth}{row.stage}",
        "axes": axes_label(own),
        "state": row.state,
        "attempts": str(row.attempts),
        "progress": f"{row.progress:.0%}",
        "loss": "" if row.loss is None else f"{row.loss:.3f}",
        "tokens/s": format_size(row.tokens_per_second) if row.tokens_per_second else "",
        "left": "" if row.seconds_left is None else format_seconds(row.seconds_left),
        "job": row.job_id or "",
        "reason": row.reason or "",
    }


def _fitting(cells: Sequence[Mapping[str, str]], width: int | None) -> tuple[list[str], int]:
    """The columns that fit a width, and how many letters of the axes do."""
    widths = {name: max([len(name), *(len(row[name]) for row in cells)]) for name in COLUMNS}
    if width is None:
        return list(COLUMNS), widths["axes"]
    columns = [name for name in COLUMNS if name not in DROPPED or any(row[name] for row in cells)]

    def needed() -> int:
        return sum(widths[name] + GAP for name in columns) - GAP

    for name in DROPPED:
        if needed() > width and name in columns:
            columns.remove(name)
    axes = widths["axes"] - max(0, needed() - width)
    return columns, max(SHORTEST_AXES, axes)


def _short(value: Any) -> Any:
    """5e-05 instead of 5.0e-05, where that is the same number."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else value


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
