"""What a search shows: a live table while it runs, and a summary at its end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retain.launchers.cli.views import new_table, open_console
from retain.launchers.search.derived_studies import SearchedStudy, fresh_seeds, write_confirmation
from retain.launchers.search.engine import Search
from retain.launchers.search.grid_best import grid_best
from retain.results.analysis.recipe_comparison import ON_FRONTIER, RECOMMENDED
from retain.results.analysis.search_summary import Estimate, Result, frontier_area, importances, recommended
from retain.results.store.runs import State
from retain.results.store.status import seconds_left
from retain.results.store.study_files import POINTS_STUDY
from retain.sweeps.base.units import format_seconds, format_size
from retain.sweeps.schema.search_space import LOSSES, Values
from retain.sweeps.tree.tree import axes_label

REFRESH_S = 1.0
BEST = 5
"""Points that the live table shows."""
SHORT = {
    "immediate_posttraining_loss": "immediate post-training",
    "retained_posttraining_loss": "retained post-training",
    "finetuning_loss": "fine-tuning",
    "retained_pretraining_loss": "retained pretraining",
}

Look = Callable[[], None]


@contextmanager
def searching(search: Search) -> Iterator[Look]:
    """A function to call often: it draws the search on standard error, or tells what ended where nobody watches."""
    console = Console(stderr=True, markup=False)
    if not console.is_terminal:
        lines = _Lines(search, console)
        yield lines
        lines.tell()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown = 0.0

        def look() -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_S:
                live.update(_picture(search), refresh=True)
                shown = time.monotonic()

        yield look


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
    parts += [f"frontier's area {area:.4g}"] if area is not None else []
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
    """A line for each point that ended, for logs."""

    def __init__(self, search: Search, console: Console) -> None:
        self.search, self.console = search, console
        self.told = self._ends()
        self.looked = 0.0

    def __call__(self) -> None:
        if time.monotonic() - self.looked < REFRESH_S:
            return
        self.looked = time.monotonic()
        self.tell()

    def tell(self) -> None:
        """A line for each point that has ended since the last call."""
        states, before = self.search.states(), self.told
        self.told = self._ends()
        for one in self.search.candidates:
            state = self.told.get(one.point.label)
            # One that was given up is told once more where its stages ended all the same.
            if state is not None and state != before.get(one.point.label):
                scores = ", ".join(f"{score:.4f}" for score in one.result.scores) if one.result else ""
                line = f"{time.strftime('%H:%M:%S')} {state} {one.point.label} {axes_label(one.point.values)}"
                told = "; ".join(filter(None, (scores, self.search.reason_of(one, states))))
                self.console.print(f"{line} {told}".rstrip(), highlight=False, soft_wrap=True)

    def _ends(self) -> dict[str, str]:
        states = self.search.states()
        known = {one.point.label: self.search.state_of(one, states) for one in self.search.candidates}
        return {label: state for label, state in known.items() if state in ("done", "pruned", "failed")}


def summary_document(search: Search, searched: SearchedStudy) -> dict[str, Any]:
    """`retain search --json`; writes the study that confirms what is recommended."""
    states, results = search.states(), search.results()
    found = recommended(searched.search, results)
    spent = search.spent()
    points_study = searched.folder / POINTS_STUDY
    by_label = {result.label: result for result in results}
    points = [
        {
            "point": one.point.label,
            "state": search.state_of(one, states),
            "values": one.point.values,
            "by": one.point.by,
        }
        | {"losses": by_label[one.point.label].means if one.point.label in by_label else None}
        | {"reason": search.reason_of(one, states)}
        for one in search.candidates
    ]
    return {
        "study": searched.name,
        "objective": str(searched.search.block.objective),
        "constraints": [f"{name} {bound}" for name, bound in searched.search.block.constraints.items()],
        "points": points,
        "recommended": [_recommendation(one) for one in found],
        "frontier_area": frontier_area(searched.search, results),
        "importances": [asdict(one) for one in importances(searched.search, results)],
        "spent": {"tokens": spent.tokens, "device_hours": spent.hours, "stages": spent.stages}
        | {"tokens_without_sharing": spent.without_sharing},
        "budget": str(search.budget) if search.budget else None,
        "over_budget": search.budget.excess(spent) if search.budget else None,
        "ended": search.exhausted or f"at most {searched.search.block.trials:,} were asked for",
        "points_study": str(points_study) if points_study.exists() else None,
        "confirm": str(_confirm(searched, found)) if found else None,
    }


def _recommendation(one: Result) -> dict[str, Any]:
    losses = {name: asdict(estimate) for name, estimate in one.losses.items()}
    return {"point": one.label, "values": one.values, "losses": losses}


def _confirm(searched: SearchedStudy, found: Sequence[Result]) -> Path:
    names = [RECOMMENDED] if len(found) == 1 else [f"{ON_FRONTIER}{number}" for number in range(len(found))]
    recipes: dict[str, Values] = {name: one.values for name, one in zip(names, found, strict=True)}
    return write_confirmation(searched, recipes, fresh_seeds(searched), grid_best(searched))


def print_summary(document: Mapping[str, Any]) -> None:
    """What is recommended and how sure that is, which axes matter, what was spent, and how to go on."""
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
            say(f"frontier's area: {document['frontier_area']:.4g} squared nats, up to the worst losses of all points")
        seeds = document["recommended"][0]["losses"]["finetuning_loss"]["seeds"]
        say(f"means over {seeds} seeds with 95% intervals" if seeds > 1 else "one seed: nothing tells how sure this is")
    elif "done" in states:
        say("no finished point keeps the constraints; loosen them, or try more points")
    else:
        say("no point has finished")
    if document["importances"]:
        table = new_table("axis", "importance", "95% interval")
        for one in document["importances"]:
            table.add_row(one["axis"], f"{one['mean']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}")
        console.print(table)
    else:
        say("too few points to say which axes matter")
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
        say(f"to confirm it with fresh seeds: retain run {document['confirm']}")


def _interval(one: Estimate) -> str:
    return f"{one.mean:.4f}" if one.low is None else f"{one.mean:.4f} ({one.low:.4f} to {one.high:.4f})"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
