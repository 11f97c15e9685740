"""What `retain status` and `retain logs` print."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retain.launchers.console import new_table, open_console, print_line
from retain.launchers.study_status import Status
from retain.results.store.runs import Run
from retain.results.store.status import RunStatus, current_state
from retain.sweeps.base.units import counted, format_seconds, format_size
from retain.sweeps.tree.tree import axes_label

COLOURS = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "queued": "yellow",
    "cancelled": "red",
    "damaged": "red",
}
WATCH_EVERY_S = 1.0
FOLLOW_EVERY_S = 0.3
MOST_RUNS = 200
"""The most runs in a printed table; --json has all. Laying out a row takes a millisecond."""
PRIORITY = ("damaged", "failed", "cancelled", "running", "queued", "skipped", "planned", "done")
"""The order in which states are kept when not all runs can be printed."""


def print_status(status: Status) -> None:
    """Print the runs, the logs of failed ones, jobs whose run was deleted, and searches."""
    console = open_console()
    shown = most_important(status.runs, MOST_RUNS)
    console.print(status_table(status.runs, shown))
    if len(shown) < len(status.runs):
        print_line(console, f"{counted(len(status.runs) - len(shown), 'more run')} with --json")
    for row in shown:
        # In a column of the table, a path would be broken.
        if row.state == "failed" and row.log is not None:
            print_line(console, f"log of {row.key[:8]}: {row.log}")
    for sentence in _sentences(status):
        print_line(console, sentence)


def watch_status(read: Callable[[], Status]) -> None:
    """Show the status until nothing is running or queued."""
    with Live(console=open_console(), auto_refresh=False, transient=True) as live:
        while not (status := read()).is_over:
            # A terminal shows no more rows than its height.
            shown = most_important(status.runs, live.console.height)
            live.update(Group(status_table(status.runs, shown), *map(Text, _sentences(status))), refresh=True)
            time.sleep(WATCH_EVERY_S)
    print_status(status)


def most_important(rows: Sequence[RunStatus], most: int) -> Sequence[RunStatus]:
    """At most `most` rows in their order: runs that failed or are active before those that are done or planned."""
    if len(rows) <= most:
        return rows
    rank = {state: number for number, state in enumerate(PRIORITY)}
    chosen = sorted(range(len(rows)), key=lambda number: rank.get(rows[number].state, 0))[:most]
    return [rows[number] for number in sorted(chosen)]


def status_table(rows: Sequence[RunStatus], shown: Sequence[RunStatus]) -> Table:
    """A row for each run that is shown, with the counts of all runs as the title."""
    states = Counter(row.state for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "no runs"
    table = new_table(
        "run", "stage", "axes", "state", "attempts", "progress", "loss", "tokens/s", "left", "job", "reason"
    )
    table.title, table.title_justify = counts, "left"
    for row in shown:
        table.add_row(
            row.key[:8],
            row.stage,
            axes_label(row.axes),
            Text(row.state, style=COLOURS.get(row.state, "dim")),
            str(row.attempts),
            f"{row.progress:.0%}",
            "" if row.loss is None else f"{row.loss:.3f}",
            format_size(row.tokens_per_second) if row.tokens_per_second else "",
            "" if row.seconds_left is None else format_seconds(row.seconds_left),
            row.job_id or "",
            row.reason or "",
        )
    return table


def follow_log(run: Run, path: Path, follow: bool) -> None:
    """Print a run's log; with `follow`, until the run ends."""
    with path.open(encoding="utf-8", errors="replace") as log:
        while True:
            active = follow and current_state(run).state in ("queued", "running")
            while block := log.read(1 << 16):
                sys.stdout.write(block)
            sys.stdout.flush()
            if not active:
                return
            time.sleep(FOLLOW_EVERY_S)


def _sentences(status: Status) -> list[str]:
    """What is printed below the table."""
    lines = [orphan.sentence for orphan in status.orphans] + [search.sentence for search in status.searches]
    return lines if status.unanswered is None else [*lines, status.unanswered]
