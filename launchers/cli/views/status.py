"""What `retain status` and `retain logs` print."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from retain.launchers.cli.views.status_table import (
    MOST_REASONS,
    most_important,
    reasons_below,
    state_counts,
    status_table,
    summary_lines,
)
from retain.launchers.console import open_console, print_line
from retain.launchers.study_status import Status
from retain.results.store.runs import Run
from retain.results.store.state import total_joules
from retain.results.store.status import StageCost, current_state
from retain.sweeps.base.units import counted, format_joules, format_seconds

WATCH_EVERY_S = 1.0
FOLLOW_EVERY_S = 0.3
IDLE_S = 120.0
"""How long `--watch` waits while runs are planned and none is queued or running: data is prepared before the first begins."""
MOST_RUNS = 200
"""The most runs in a printed table; --json has all. Laying out a row takes a millisecond."""


def print_status(status: Status) -> None:
    """Print the counts, the tree of runs, the logs of failed ones, jobs whose run was deleted, and searches."""
    console = open_console()
    shown = most_important(status.runs, MOST_RUNS)
    for line in summary_lines(status.runs, status.seconds_left):
        print_line(console, line)
    table = status_table(status.runs, shown, console.width)
    table.title = None
    console.print(table)
    if len(shown) < len(status.runs):
        print_line(console, f"{counted(len(status.runs) - len(shown), 'more run')} with --json")
    for line in reasons_below(shown, console.width):
        print_line(console, line)
    failed = [row for row in shown if row.state == "failed" and row.log is not None]
    for row in failed[:MOST_REASONS]:
        # In a column of the table, a path would be broken.
        print_line(console, f"log of {row.key[:8]}: {row.log}")
    if len(failed) > MOST_REASONS:
        print_line(console, f"{counted(len(failed) - MOST_REASONS, 'more log')}: retain logs KEY prints one")
    for sentence in _sentences(status):
        print_line(console, sentence)


def watch_status(read: Callable[[], Status], idle_s: float = IDLE_S) -> None:
    """Show the status until every run has ended, or nothing was queued or running for a while (idle_s, in seconds).

    Runs that are planned may begin at any moment: a launcher that has just been started prepares data first. If standard
    output is not a terminal, the counts are printed whenever they change.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    active_at, counted_last = time.monotonic(), ""
    with Live(console=open_console(), auto_refresh=False, transient=True) as live:
        while True:
            status = read()
            now = time.monotonic()
            active_at = now if not status.is_idle else active_at
            if status.is_over or (status.is_idle and now - active_at >= idle_s):
                break
            lines = [*summary_lines(status.runs, status.seconds_left), ""]
            if not live.console.is_terminal and (counts := state_counts(status.runs)) != counted_last:
                counted_last = counts
                print_line(live.console, lines[0])
                sys.stdout.flush()
            # A terminal shows no more rows than its height.
            shown = most_important(status.runs, live.console.height - len(lines) - 3)
            table = status_table(status.runs, shown, live.console.width)
            table.title = None
            live.update(Group(*map(Text, lines[:-1]), table, *map(Text, _sentences(status))), refresh=True)
            time.sleep(WATCH_EVERY_S)
    print_status(status)
    if not status.is_over:
        print_line(
            open_console(),
            f"nothing was queued or running for {idle_s:.0f} s; start training with retain run or retain submit",
        )


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
    lines = [
        *_cost_lines(status.cost),
        *(orphan.sentence for orphan in status.orphans),
        *(search.sentence for search in status.searches),
    ]
    return lines if status.unanswered is None else [*lines, status.unanswered]


def _cost_lines(costs: Sequence[StageCost]) -> list[str]:
    """`device time: 2h 10m (pretrain 1h 30m, finetune 40m 00s), 3m 05s of it lost`; empty before the first attempt."""
    total, lost = (sum(getattr(cost, name) for cost in costs) * 3600 for name in ("device_hours", "lost_hours"))
    if total < 1:
        return []
    stages = ", ".join(f"{cost.stage} {format_seconds(cost.device_hours * 3600)}" for cost in costs if cost.attempts)
    again = f", {format_seconds(lost)} of it repeated after interruptions" if lost >= 1 else ""
    joules = total_joules(costs)
    energy = "" if joules is None else f"; energy, where devices measure it: {format_joules(joules)}"
    return [f"device time: {format_seconds(total)} ({stages}){again}{energy}"]
