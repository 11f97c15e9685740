"""What a search prints: a live table while it runs, and a summary at its end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retain.launchers.console import new_table, open_console
from retain.launchers.search.engine import Search
from retain.results.analysis.search_summary import Estimate, Result, frontier_area, recommended
from retain.results.store.state import State
from retain.results.store.status import seconds_left
from retain.sweeps.base.units import format_seconds, format_size
from retain.sweeps.schema.search_space import LOSSES
from retain.sweeps.tree.tree import axes_label

REFRESH_S = 1.0
BEST = 5
"""Number of points in the live table."""
SHORT = {
    "immediate_posttraining_loss": "immediate post-training",
    "retained_posttraining_loss": "retained post-training",
    "finetuning_loss": "fine-tuning",
    "retained_pretraining_loss": "retained pretraining",
}

Refresh = Callable[[], None]


@contextmanager
def searching(search: Search) -> Iterator[Refresh]:
    """A function to call often: it draws the search on standard error, or prints a line for each end if that is no terminal."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        lines = _Lines(search, console)
        yield lines
        lines.report()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown = 0.0

        def refresh() -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_S:
                live.update(_picture(search), refresh=True)
                shown = time.monotonic()

        yield refresh


def _picture(search: Search) -> Group:
    states, results = search.states(), search.results()
    return Group(
        Text(_headline(search, states, results), style="bold"),
        _best_table(search, results),
        _running_table(search, states),
    )


def _headline(search: Search, states: dict[str, State], results: Sequence[Result]) -> str:
    """`laptop-search: 7 of 20 points done, 2 open, 1 pruned; 3.1M tokens trained, sharing saved 4.2M`."""
    counts: dict[str, int] = {}
    for one in search.candidates:
        state = search.state_of(one, states)
        counts[state] = counts.get(state, 0) + 1
    parts = [f"{search.searched.name}: {counts.get('done', 0)} of {search.block.trials} points done"]
    parts += [f"{counts.get('running', 0) + counts.get('planned', 0)} open"]
    parts += [f"{counts[name]} {name}" for name in ("pruned", "failed") if counts.get(name)]
    area = frontier_area(search.searched.search, results)
    parts += [f"frontier area {area:.4g}"] if area is not None else []
    spent = search.spent()
    of = f" of {search.budget}" if search.budget else ""
    hours = f"{spent.hours:.3g} device-hours"
    return f"{', '.join(parts)}; spent {format_size(spent.tokens)} tokens, {hours}{of}; {_saved(search)}"


def _saved(search: Search) -> str:
    spent = search.spent()
    return f"sharing saved {format_size(max(0, spent.without_sharing - spent.tokens))} tokens"


def _best_table(search: Search, results: Sequence[Result]) -> Table:
    table = new_table("best so far", *(axis.path for axis in search.searched.search.axes), *SHORT.values())
    best = recommended(search.searched.search, results)
    others = sorted((one for one in results if one not in best), key=lambda one: one.scores)
    for one in [*best, *others][:BEST]:
        values = [_text(one.values.get(axis.path)) for axis in search.searched.search.axes]
        table.add_row(one.label, *values, *(f"{one.losses[name].mean:.4f}" for name in LOSSES))
    return table


def _running_table(search: Search, states: dict[str, State]) -> Table:
    table = new_table("running", "tokens", "loss", "left")
    stages = {key: stage for one in search.candidates if one.tree for key, stage in one.tree.stages.items()}
    for key in sorted(search.at_work):
        stage, progress = stages[key], states[key].progress
        left = seconds_left(states[key])
        loss = "" if progress.loss is None else f"{progress.loss:.3f}"
        axes = {name: value for name, value in stage.axes.items() if name != "point"}
        done = f"{format_size(progress.tokens)} / {format_size(stage.tokens)}"
        table.add_row(f"{stage.stage} {axes_label(axes)}", done, loss, "" if left is None else format_seconds(left))
    return table


class _Lines:
    """Prints a line for each point that ended, for logs."""

    def __init__(self, search: Search, console: Console) -> None:
        self.search, self.console = search, console
        self.reported = self._ends()
        self.polled = 0.0

    def __call__(self) -> None:
        if time.monotonic() - self.polled < REFRESH_S:
            return
        self.polled = time.monotonic()
        self.report()

    def report(self) -> None:
        """Print a line for each point that has ended since the last call."""
        states, before = self.search.states(), self.reported
        self.reported = self._ends()
        for one in self.search.candidates:
            state = self.reported.get(one.point.label)
            # A point that was given up is reported again if its stages were finished all the same.
            if state is not None and state != before.get(one.point.label):
                scores = ", ".join(f"{score:.4f}" for score in one.result.scores) if one.result else ""
                line = f"{time.strftime('%H:%M:%S')} {state} {one.point.label} {axes_label(one.point.values)}"
                ending = "; ".join(filter(None, (scores, self.search.reason_of(one, states))))
                self.console.print(f"{line} {ending}".rstrip(), highlight=False, soft_wrap=True)

    def _ends(self) -> dict[str, str]:
        states = self.search.states()
        known = {one.point.label: self.search.state_of(one, states) for one in self.search.candidates}
        return {label: state for label, state in known.items() if state in ("done", "pruned", "failed")}


def print_summary(document: Mapping[str, Any]) -> None:
    """Print what is recommended and how sure that is, which axes matter, what was spent, and what to do next."""
    console = open_console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    states = [point["state"] for point in document["points"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console.print(Text(f"search of {document['study']}: {document['objective']}", style="bold"))
    if document["constraints"]:
        say(f"constraints: {', '.join(document['constraints'])}")
    say(f"{len(states)} point{'s' * (len(states) != 1)}: {counts or 'none'}; {document['ended']}")
    for point in document["points"]:
        if point["reason"]:
            say(f"{point['state']} {point['point']} {axes_label(point['values'])}: {point['reason']}")
    if document["recommended"]:
        table = new_table(
            "recommended", *document["recommended"][0]["values"], *(f"{name} loss" for name in SHORT.values())
        )
        for one in document["recommended"]:
            losses = [_interval(Estimate(**one["losses"][name])) for name in SHORT]
            table.add_row(one["point"], *map(_text, one["values"].values()), *losses)
        console.print(table)
        if document["frontier_area"] is not None:
            say(f"frontier area: {document['frontier_area']:.4g} squared nats, up to the worst losses of all points")
        seeds = document["recommended"][0]["losses"]["finetuning_loss"]["seeds"]
        say(f"means over {seeds} seeds with 95% intervals" if seeds > 1 else "one seed: no interval")
    elif "done" in states:
        say("no finished point keeps the constraints; relax them, or try more points")
    else:
        say("no point has finished")
    if document["importances"]:
        table = new_table("axis", "importance", "95% interval")
        for one in document["importances"]:
            table.add_row(one["axis"], f"{one['mean']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}")
        console.print(table)
    else:
        say("too few points to estimate the importance of axes")
    spent = document["spent"]
    saved = max(0, spent["tokens_without_sharing"] - spent["tokens"])
    budget = f" of {document['budget']}" if document["budget"] else ""
    over = f" (over by {document['over_budget']})" if document["over_budget"] else ""
    say(
        f"spent{budget}{over}: {format_size(spent['tokens'])} tokens in {spent['stages']:,} stages, "
        f"{spent['device_hours']:.3g} device-hours; one run per trial would have trained {format_size(saved)} more"
    )
    if document["points_study"]:
        say(f"all points: retain results {document['points_study']}")
    if document["confirm"]:
        say(f"to confirm it on fresh seeds: retain run {document['confirm']}")


def _interval(one: Estimate) -> str:
    return f"{one.mean:.4f}" if one.low is None else f"{one.mean:.4f} ({one.low:.4f} to {one.high:.4f})"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
