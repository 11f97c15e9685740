"""The live view of a local run: every stage with its progress, loss, speed and time left. Without a terminal, lines."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from retain.datamodules.corpora.reading.report import Report
from retain.launchers.cli.views.status_table import most_important, status_table
from retain.launchers.console import print_line
from retain.launchers.local.launcher import WAITING, Watch
from retain.launchers.local.preparation import prepare_here
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.results.store.runs import Store
from retain.results.store.state import State
from retain.results.store.status import RunStatus, StatusReader, study_seconds_left
from retain.sweeps.base.processes.many_writes import Count
from retain.sweeps.base.units import format_seconds, format_size
from retain.sweeps.tree.tree import Stage, Tree, axes_label

REFRESH_S = 0.5


def prepare(study: str, overrides: Sequence[str], store: Path) -> OpenedStudy:
    """The study with its data prepared, with progress on standard error. Raises StudyError, MissingResourceError."""
    with reporting() as report:
        return prepare_study(study, overrides, store, report, prepare_here)


@contextmanager
def reporting() -> Iterator[Report]:
    """A function to call while data is prepared: it shows what was read so far on standard error, or a line for each corpus."""
    console = Console(stderr=True, markup=False)
    columns = (SpinnerColumn(), TextColumn("preparing {task.description}{task.fields[seen]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        rows: dict[str, TaskID] = {}

        def show(name: str, documents: int, tokens: int) -> None:
            if name not in rows:
                rows[name] = progress.add_task(name, total=None, seen="")
                if not console.is_terminal:
                    print_line(console, f"{time.strftime('%H:%M:%S')} preparing {name}")
            if documents:
                seen = f" {format_size(documents)} documents, {format_size(tokens)} training tokens"
                progress.update(rows[name], seen=seen)

        yield show


@contextmanager
def counting(doing: str, shown: bool = True) -> Iterator[Count]:
    """A function to call with how many things are done, and of how many: a terminal sees it on standard error."""
    console = Console(stderr=True, markup=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}{task.fields[seen]}"), TimeElapsedColumn())
    off = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=off) as progress:
        task = progress.add_task(doing, total=None, seen="")
        yield lambda done, total: progress.update(task, seen=f": {done:,} of {total:,}")


@contextmanager
def watching(tree: Tree, store: Store) -> Iterator[Watch]:
    """A function to call with the states of the stages: it draws the table of `retain status --watch`, or prints changes."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        yield _print_changes(tree, console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        shown, reader = -REFRESH_S, StatusReader(store)

        def show(states: Mapping[str, State]) -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_S or all(state.state != "running" for state in states.values()):
                shown = time.monotonic()
                rows = reader.of_study(tree, states)
                table = status_table(rows, most_important(rows, console.height - 4), console.width)
                table.title = f"{tree.study}: {table.title}{_time_left(rows)}"
                live.update(table, refresh=True)

        yield show


def _time_left(rows: Sequence[RunStatus]) -> str:
    """The speed of all running stages, and the time that is left at this speed; empty if nothing is running."""
    left = study_seconds_left(rows)
    if left is None:
        return ""
    speed = sum(row.tokens_per_second for row in rows if row.state == "running")
    return f", {format_size(speed)} tokens/s, {format_seconds(left)} left"


def _print_changes(tree: Tree, console: Console) -> Watch:
    """A function that prints a line for each stage that has begun or ended since its last call."""
    before: dict[str, str] = {}
    waited: dict[str, str] = {}

    def print_changes(states: Mapping[str, State]) -> None:
        for key, state in states.items():
            if state.state != before.get(key, state.state) and state.state in ("running", "done", "failed"):
                print_line(console, _line(tree.stages[key], state))
            before[key] = state.state
            reason = state.reason or ""
            if reason.startswith(WAITING) and waited.get(key) != reason:
                waited[key], stage = reason, tree.stages[key]
                print_line(
                    console, f"{time.strftime('%H:%M:%S')} {stage.stage} {key[:8]} {axes_label(stage.axes)} {reason}"
                )

    return print_changes


def _line(stage: Stage, state: State) -> str:
    line = f"{time.strftime('%H:%M:%S')} {state.state:<7} {stage.stage} {stage.key[:8]} {axes_label(stage.axes)}"
    if state.state == "failed":
        return f"{line}: {state.reason}"
    if state.state != "done" or not state.attempts:
        return line
    attempt, progress = state.attempts[-1], state.progress
    spent = format_seconds((attempt.end or time.time()) - attempt.start)
    speed = f", {format_size(progress.tokens_per_second)} tokens/s" if progress.tokens_per_second else ""
    return f"{line} ({format_size(progress.tokens)} tokens in {spent}{speed})"
