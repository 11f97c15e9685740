"""What a search prints: a live table while it runs, and a summary at its end."""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retain.launchers.console import new_table, open_console, print_line
from retain.launchers.search.engine import Search
from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.analysis.search_summary import frontier_area, recommended
from retain.results.report.search import describe_search
from retain.results.store.status import seconds_left
from retain.results.store.study_files import POINTS_STUDY
from retain.sweeps.base.units import format_seconds, format_size
from retain.sweeps.base.yaml_text import cell
from retain.sweeps.tree.tree import axes_label

BEST = 5
"""Number of points in the live table."""


@contextmanager
def searching(search: Search) -> Iterator[Callable[[], None]]:
    """A function to call once a second: it draws the search on a terminal, or prints a line for each point that has ended."""
    console = Console(stderr=True, markup=False)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda: live.update(_picture(search), refresh=True)
    else:
        report = _print_ends(search, console)
        yield report
        report()


def _picture(search: Search) -> Group:
    return Group(Text(_headline(search), style="bold"), _best_table(search), _running_table(search))


def _headline(search: Search) -> str:
    """`laptop-search: 7 of 20 points done, 2 open, 1 pruned; spent 3M tokens, 0.2 device-hours; sharing saved 4.2M tokens`."""
    counts = Counter(search.state_of(one) for one in search.candidates)
    parts = [f"{search.searched.name}: {counts['done']} of {search.block.trials} points done"]
    parts += [f"{counts['running'] + counts['planned']} open"]
    parts += [f"{counts['pruned']} pruned"] if counts["pruned"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    area = frontier_area(search.space, search.results())
    parts += [f"frontier area {area:.4g}"] if area is not None else []
    spent = search.spent()
    budget = f" of {search.budget}" if search.budget else ""
    saved = format_size(max(0, spent.without_sharing - spent.tokens))
    costs = f"spent {format_size(spent.tokens)} tokens, {spent.hours:.3g} device-hours{budget}"
    return f"{', '.join(parts)}; {costs}; sharing saved {saved} tokens"


def _best_table(search: Search) -> Table:
    axes, results = [axis.path for axis in search.space.axes], search.results()
    names = list(dict.fromkeys(name for one in results for name in one.losses))
    table = new_table("best so far", *axes, *(SYMBOLS.get(name, name) for name in names))
    best = recommended(search.space, results)
    others = sorted((one for one in results if one not in best), key=lambda one: one.scores)
    for one in [*best, *others][:BEST]:
        losses = (f"{one.losses[name].mean:.4f}" if name in one.losses else "" for name in names)
        table.add_row(one.label, *(cell(one.values.get(path)) for path in axes), *losses)
    return table


def _running_table(search: Search) -> Table:
    table = new_table("running", "tokens", "loss", "left")
    for key in sorted(search.training):
        stage, state = search.stages[key], search.states[key]
        loss, left = state.progress.loss, seconds_left(state)
        axes = {name: value for name, value in stage.axes.items() if name != "point"}
        table.add_row(
            f"{stage.stage} {axes_label(axes)}",
            f"{format_size(state.progress.tokens)} / {format_size(stage.tokens)}",
            "" if loss is None else f"{loss:.3f}",
            "" if left is None else format_seconds(left),
        )
    return table


def _print_ends(search: Search, console: Console) -> Callable[[], None]:
    """A function that prints a line for each point that has ended since its last call; the first line says what is searched."""
    points, store = search.searched.folder / POINTS_STUDY, search.store.root
    print_line(
        console,
        f"{time.strftime('%H:%M:%S')} searching {', '.join(axis.path for axis in search.space.axes)} for "
        f"{search.block.objective}: {len(search.results())} of {search.block.trials} points done; to follow the stages: "
        f"{shlex.join(['retain', 'status', str(points), '--store', str(store)])}",
    )
    reported = {one.point.label: search.state_of(one) for one in search.candidates}

    def print_ends() -> None:
        search.read_states()
        for one in search.candidates:
            label, state = one.point.label, search.state_of(one)
            # A point that was given up is reported again if its stages were finished all the same.
            if state in ("done", "pruned", "failed") and state != reported.get(label):
                # With its own sign also where the objective is a metric that is maximised.
                measured = search.space.block.objective.scores(one.result.means) if one.result else ()
                scores = ", ".join(f"{value:.4f}" for value in measured)
                ending = "; ".join(filter(None, (scores, search.reason_of(one))))
                line = f"{time.strftime('%H:%M:%S')} {state} {label} {axes_label(one.point.values)} {ending}"
                print_line(console, line.rstrip())
            reported[label] = state

    return print_ends


def print_summary(document: Mapping[str, Any]) -> None:
    """Print what a search recommends and how certain that is, which axes matter, what it spent, and what to do next."""
    part, console = describe_search(document), open_console()
    console.print(Text(f"search of {document['study']}", style="bold"))
    for sentence in part.sentences:
        print_line(console, sentence)
    for point in document["points"]:
        if point["reason"]:
            print_line(console, f"{point['state']} {point['point']} {axes_label(point['values'])}: {point['reason']}")
    for table in part.tables:
        drawn = new_table(*table.columns, left=len(table.columns))
        for row in table.rows:
            drawn.add_row(*(field.text for field in row))
        console.print(table.caption)
        console.print(drawn)
    todo = {
        "all points": ("results", "points_study"),
        "to confirm the recommendation on fresh seeds": ("run", "confirm"),
    }
    for what, (verb, field) in todo.items():
        if study := document[field]:
            store = Path(study).parents[2]
            print_line(console, f"{what}: {shlex.join(['retain', verb, study, '--store', str(store)])}")
