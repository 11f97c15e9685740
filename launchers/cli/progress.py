"""The live view of a local run: the tree with tokens, loss, speed and time left; plain lines where nobody watches."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from retain.datamodules.corpora.prepare import Report
from retain.launchers.local.launcher import Watch
from retain.results.store.readiness import blocked_stages
from retain.results.store.state import State
from retain.results.store.status import seconds_left
from retain.sweeps.base.units import format_seconds, format_size
from retain.sweeps.tree.tree import Axes, Stage, Tree, axes_label

REFRESH_S = 0.5
MARKS = {
    "done": ("✓", "green"),
    "running": ("▶", "cyan"),
    "failed": ("✗", "red"),
    "planned": ("·", "dim"),
    "held up": ("-", "dim"),
}


@contextmanager
def reporting() -> Iterator[Report]:
    """A function to call while data is prepared: it shows what was read so far on standard error, or a line a corpus."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        told: set[str] = set()

        def tell(name: str, documents: int, tokens: int) -> None:
            if name not in told:
                told.add(name)
                console.print(f"{time.strftime('%H:%M:%S')} preparing {name}", highlight=False)

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("preparing {task.description}"),
        TextColumn("{task.fields[seen]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        rows: dict[str, TaskID] = {}

        def show(name: str, documents: int, tokens: int) -> None:
            if name not in rows:
                rows[name] = progress.add_task(name, total=None, seen="")
            if documents:
                seen = f"{format_size(documents)} documents, {format_size(tokens)} training tokens"
                progress.update(rows[name], seen=seen)

        yield show


@contextmanager
def watching(tree: Tree, console: Console) -> Iterator[Watch]:
    """A function to call with the states of the stages: it draws them, or reports their changes line by line."""
    if not console.is_terminal:
        yield _Lines(tree, console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        shown = -REFRESH_S

        def show(states: Mapping[str, State]) -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_S or all(state.state != "running" for state in states.values()):
                shown = time.monotonic()
                live.update(progress_table(tree, states, console.height - 4), refresh=True)

        yield show


def progress_table(tree: Tree, states: Mapping[str, State], height: int) -> Table:
    """The tree with a row a stage; where it is higher than `height` rows, only what runs and what failed."""
    table = Table(title=overall(tree, states), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("stage", "tokens", "loss", "tokens/s", "left"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True, header_style="dim")
    held_up = blocked_stages(tree.stages, states)
    everything = len(tree.stages) <= height
    for stage, guide in _in_order(tree):
        state = states[stage.key]
        if everything or state.state in ("running", "failed"):
            mark, style = MARKS.get("held up" if stage.key in held_up else state.state, MARKS["planned"])
            # Alone, a row names all its axes; in the tree, those that its parent does not name.
            above = tree.stages[stage.parent].axes if stage.parent and everything else {}
            label = axes_label({name: value for name, value in stage.axes.items() if name not in above})
            first = Text.assemble(
                (guide if everything else "", "dim"), (f"{mark} ", style), f"{stage.stage} ", (label, "dim")
            )
            table.add_row(first, *_columns(stage, state))
    return table


def overall(tree: Tree, states: Mapping[str, State]) -> str:
    """One line: how many stages are done, running and failed, the speed, and the time left."""
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.state] = counts.get(state.state, 0) + 1
    speed = sum(state.progress.tokens_per_second for state in states.values() if state.state == "running")
    stopped = blocked_stages(tree.stages, states)
    left = sum(
        tree.stages[key].tokens - (state.progress.tokens if state.state == "running" else 0)
        for key, state in states.items()
        if state.state not in ("done", "failed", "cancelled") and key not in stopped
    )
    parts = [f"{tree.study}: {counts.get('done', 0)} of {len(states)} stages done"]
    parts += [f"{counts[name]} {name}" for name in ("running", "failed") if counts.get(name)]
    if speed:
        parts += [f"{format_size(speed)} tokens/s", f"{format_seconds(left / speed)} left"]
    return ", ".join(parts)


def _columns(stage: Stage, state: State) -> tuple[str, str, str, str]:
    progress = state.progress
    loss = f"{progress.loss:.3f}" if progress.loss is not None else ""
    speed = format_size(progress.tokens_per_second) if progress.tokens_per_second else ""
    if state.state == "running":
        left = seconds_left(state)
        seen = f"{format_size(progress.tokens)} / {format_size(stage.tokens)}"
        return seen, loss, speed, "" if left is None else format_seconds(left)
    if state.state in ("failed", "cancelled"):
        return f"{format_size(progress.tokens)} / {format_size(stage.tokens)}", loss, "", state.state
    if state.state == "done":
        return format_size(progress.tokens), loss, speed, "done"
    return format_size(stage.tokens), "", "", ""


def _in_order(tree: Tree) -> Iterator[tuple[Stage, str]]:
    """Every stage below its parent, with the lines that draw the tree."""
    children: dict[str | None, list[Stage]] = {}
    for stage in tree.stages.values():
        children.setdefault(stage.parent, []).append(stage)

    def below(parent: str | None, indent: str) -> Iterator[tuple[Stage, str]]:
        stages = children.get(parent, [])
        for stage in stages:
            last = stage is stages[-1]
            branch, trunk = ("└ ", "  ") if last else ("├ ", "│ ")
            yield stage, indent + (branch if parent else "")
            yield from below(stage.key, indent + (trunk if parent else ""))

    return below(None, "")


class _Lines:
    """A line at each stage's beginning and end, for logs."""

    def __init__(self, tree: Tree, console: Console) -> None:
        self.tree, self.console = tree, console
        self.told: dict[str, str] = {}

    def __call__(self, states: Mapping[str, State]) -> None:
        for key, state in states.items():
            if not self.told:
                continue
            if state.state != self.told.get(key) and state.state in ("running", "done", "failed"):
                self._tell(self.tree.stages[key], state)
        self.told = {key: state.state for key, state in states.items()}

    def _tell(self, stage: Stage, state: State) -> None:
        last: Axes = stage.axes
        line = f"{time.strftime('%H:%M:%S')} {state.state:<7} {stage.stage} {stage.key[:8]} {axes_label(last)}"
        if state.state == "done" and state.attempts:
            attempt = state.attempts[-1]
            seconds = (attempt.end or time.time()) - attempt.start
            line += f" ({format_size(state.progress.tokens)} tokens in {format_seconds(seconds)}"
            line += f", {format_size(state.progress.tokens_per_second)} tokens/s)"
        elif state.state == "failed":
            line += f": {state.reason}"
        self.console.print(line, highlight=False, soft_wrap=True)
