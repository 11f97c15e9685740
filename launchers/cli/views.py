"""What the verbs print: documents for scripts (`--json`) and tables for people."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retain.launchers.checks.drill import SIGNALS, DrillResult, count_kills
from retain.launchers.jobs.resources import Resources
from retain.launchers.jobs.status import Orphan
from retain.launchers.jobs.submit import Submitted
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.search.jobs.status import search_sentence
from retain.results.store.garbage import Waste
from retain.results.store.loss_table import LOSSES, Row
from retain.results.store.runs import State
from retain.results.store.status import RunStatus, count_states, held_up_stages
from retain.results.store.verify import Problem
from retain.sweeps.base.units import format_bytes, format_seconds, format_size
from retain.sweeps.tree.tree import Tree, axes_label

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "queued": "yellow", "cancelled": "red"}
WATCH_EVERY_S = 1.0
MOST_ROWS = 40
"""Trials that `run` prints; `results` prints all."""
MOST_RUNS = 200
"""Runs that `status` prints; with --json all. Laying out a row of a table takes a millisecond."""
TELLING = ("failed", "cancelled", "running", "queued", "skipped", "planned", "done")
"""States, those first whose runs are printed where not all can be."""


def print_json(document: Mapping[str, Any]) -> None:
    """One document on standard output, each element of a list in a line; NaN never occurs in it."""
    print("{\n" + ",\n".join(f' "{name}": {_json_text(value)}' for name, value in document.items()) + "\n}")


def _json_text(value: Any) -> str:
    # Without `indent` the standard library encodes in C, ten times as fast.
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(element, allow_nan=False)}" for element in value) + "\n ]"
    return json.dumps(value, indent=1, allow_nan=False).replace("\n", "\n ")


def data_document(opened: OpenedStudy) -> dict[str, Any]:
    """`retain data --json`: the tokeniser and the corpora of a study, in sequences and tokens."""
    corpora = [
        {
            "name": name,
            "sequence_length": length,
            "fingerprint": facts.fingerprint,
            "train_tokens": (facts.train or 0) * length,
            "heldout_tokens": (facts.heldout or 0) * length,
        }
        for (name, length), facts in opened.facts.corpora.items()
    ]
    tokenizer = {"fingerprint": opened.facts.tokenizer, "vocabulary": opened.facts.vocabulary}
    return {"study": opened.tree.study, "store": str(opened.store.root), "tokenizer": tokenizer, "corpora": corpora}


def print_data(document: Mapping[str, Any]) -> None:
    table = new_table("corpus", "sequence length", "training tokens", "held-out tokens", "fingerprint")
    for corpus in document["corpora"]:
        counts = (f"{corpus['sequence_length']:,}", f"{corpus['train_tokens']:,}", f"{corpus['heldout_tokens']:,}")
        table.add_row(corpus["name"], *counts, corpus["fingerprint"])
    open_console().print(table)


@dataclass(frozen=True)
class Look:
    """One look at runs and at what SLURM has to do with them."""

    rows: Sequence[RunStatus]
    orphans: Sequence[Orphan]
    searches: Sequence[Mapping[str, Any]]
    """As documents; see `retain.launchers.search.jobs.status`."""
    unanswered: str | None = None
    """Where SLURM was asked and did not answer: what it said, and what the rows are then."""

    @property
    def sentences(self) -> list[str]:
        """What is told below the table."""
        told = [orphan.sentence for orphan in self.orphans] + [search_sentence(search) for search in self.searches]
        return told if self.unanswered is None else [*told, self.unanswered]

    @property
    def is_over(self) -> bool:
        """Whether it is known that nothing is queued or running."""
        states = [row.state for row in self.rows] + [search["state"] for search in self.searches]
        return self.unanswered is None and not {"running", "queued"} & set(states)


def print_status(look: Look) -> None:
    """The runs, the logs of those that failed, the jobs whose run is gone, and the searches."""
    console = open_console()
    shown = most_telling(look.rows, MOST_RUNS)
    console.print(status_table(look.rows, shown))
    if len(shown) < len(look.rows):
        console.print(f"{len(look.rows) - len(shown):,} more runs with --json", highlight=False)
    _print_logs(console, shown)
    for sentence in look.sentences:
        console.print(sentence, highlight=False, soft_wrap=True)


def _print_logs(console: Console, rows: Sequence[RunStatus]) -> None:
    """Where those that failed have told why; a path in a column of the table would be broken."""
    for row in rows:
        if row.state == "failed" and row.log is not None:
            console.print(f"log of {row.key[:8]}: {row.log}", highlight=False, soft_wrap=True)


def most_telling(rows: Sequence[RunStatus], most: int) -> Sequence[RunStatus]:
    """As many rows as may be shown, in their order: those of runs that failed or are at work before those done or planned."""
    if len(rows) <= most:
        return rows
    rank = {state: number for number, state in enumerate(TELLING)}
    chosen = sorted(range(len(rows)), key=lambda number: rank.get(rows[number].state, 0))[:most]
    return [rows[number] for number in sorted(chosen)]


def status_table(rows: Sequence[RunStatus], shown: Sequence[RunStatus]) -> Table:
    """One row for each run that is shown, and the counts of all of them as the title."""
    counts = ", ".join(f"{count} {state}" for state, count in count_states(rows).items()) or "no runs"
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


def watch_status(look: Callable[[], Look]) -> None:
    """Show the status until nothing is running or queued."""
    with Live(console=open_console(), auto_refresh=False, transient=True) as live:
        while not (seen := look()).is_over:
            # A terminal shows no more than its height; the rest would be laid out in vain.
            shown = most_telling(seen.rows, live.console.height)
            live.update(Group(status_table(seen.rows, shown), *map(Text, seen.sentences)), refresh=True)
            time.sleep(WATCH_EVERY_S)
    print_status(seen)


def print_results(opened: OpenedStudy, rows: Sequence[Row], shown: Sequence[Path]) -> None:
    """The loss table, and the paths of what was made beside it."""
    names = opened.file.labels
    table = new_table(*names, "L_im", "L_ret", "L_ft", "L_pre", "tokens", left=len(names))
    for row in rows[:MOST_ROWS]:
        losses = ("" if row[name] is None else f"{row[name]:.4f}" for name in LOSSES)
        tokens = "" if row["tokens"] is None else format_size(row["tokens"])
        table.add_row(*(_value(row["axes"].get(name, "")) for name in names), *losses, tokens)
    console = open_console()
    console.print(table)
    console.print(f"{opened.file.study.loss_unit}: after post-training (im), and after fine-tuning (ret, ft, pre)")
    if len(rows) > MOST_ROWS:
        console.print(f"{len(rows) - MOST_ROWS:,} more trials in {shown[0]}", soft_wrap=True)
    for path in shown:
        console.print(str(path), highlight=False, soft_wrap=True)


def print_failures(tree: Tree, states: Mapping[str, State]) -> int:
    """Which stages failed and why, and how many they hold up; returns how many failed."""
    console = Console(stderr=True, markup=False)
    held_up = held_up_stages(tree.stages, states)
    failed = [tree.stages[key] for key, state in states.items() if state.state in ("failed", "cancelled")]
    for stage in failed:
        state = states[stage.key]
        below = sum(stage in tree.ancestors(key) for key in held_up)
        line = f"{state.state}: {stage.stage} {stage.key[:8]} ({axes_label(stage.axes)}): {state.reason}"
        console.print(line + (f"; {below} stages below it wait" if below else ""), highlight=False, soft_wrap=True)
    return len(failed)


def submitted_document(study: str, result: Submitted) -> dict[str, Any]:
    """`retain submit --json`."""
    return {
        "study": study,
        "jobs": [{"job_id": job_id, "keys": list(keys)} for job_id, keys in result.jobs],
        "adopted": list(result.adopted),
        "released": list(result.released),
        "queued_already": result.queued_already,
        "done_already": result.done_already,
        "failed": list(result.failed),
        "deferred": list(result.deferred),
    }


def print_submitted(study: str, result: Submitted) -> None:
    """What was submitted, what was not, and why."""
    console = open_console()
    stages = sum(len(keys) for _, keys in result.jobs)
    console.print(f"{stages:,} stages submitted in {len(result.jobs):,} jobs", highlight=False)
    lines = {
        f"{result.done_already:,} are done already": result.done_already,
        f"{result.queued_already:,} are queued or running already": result.queued_already,
        f"{len(result.adopted):,} jobs of an earlier submission without an answer were found again": len(
            result.adopted
        ),
        f"{len(result.released):,} jobs that a node could not start were released": len(result.released),
        f"{len(result.failed):,} failed, were cancelled or skipped: retain retry {study}": len(result.failed),
        f"{len(result.deferred):,} are beyond your limit of jobs: the jobs that end submit them": len(result.deferred),
    }
    for line, count in lines.items():
        if count:
            console.print(line, highlight=False)


def print_scripts(opened: OpenedStudy, resources: Mapping[str, Resources], site: str | None) -> None:
    """The script of every family of siblings, as it would be submitted, and where its walltime comes from."""
    from retain.launchers.jobs.code_snapshot import snapshot_code
    from retain.launchers.jobs.submit import families, sbatch_script

    code = snapshot_code(opened.store.root)
    missing = [key for key, state in opened.store.states(opened.tree.stages).items() if state.state != "done"]
    for family in families(opened.store, missing):
        dependency = None if family.parent is None else f"afterany:<job of {family.parent[:8]}>"
        pack = f", {family.pack} to a job" if family.pack > 1 else ""
        print(f"# {family.stage}{pack}: {' '.join(key[:8] for key in family.keys)}")
        print(f"# site {site or 'without a profile'}; walltime {resources[family.keys[0]].walltime}")
        print(sbatch_script(opened.store, family, dependency, code))


def print_why(document: Mapping[str, Any]) -> None:
    """What a key is made of, and the differences asked for."""
    console = open_console()
    console.print(Text(f"{document['stage']} {document['key']}", style="bold"))
    table = new_table("field", "value", left=2)
    for name, value in document["fields"].items():
        table.add_row(name, _value(value))
    console.print(table)
    other = document["compared_with"]
    if other is None:
        console.print("no other run of this kind in the store or the study to compare with")
    elif not document["differences"]:
        console.print(f"{other} is the same stage")
    else:
        table = new_table("field", document["key"][:8], other[:8], left=3)
        for difference in document["differences"]:
            table.add_row(difference["field"], _value(difference["here"]), _value(difference["there"]))
        console.print(f"split from {other} by", highlight=False)
        console.print(table)


def print_problems(checked: int, problems: Sequence[Problem]) -> None:
    console = open_console()
    for problem in problems:
        console.print(f"{problem.where}: {problem.what}", highlight=False, soft_wrap=True)
    console.print(f"{checked:,} runs checked, {len(problems):,} problems")


def waste_document(
    study: str | None, found: Sequence[Waste], kept: Sequence[str | None], dry_run: bool
) -> dict[str, Any]:
    """`retain gc --json`: what was freed (or would be), what stays although nothing needs it, and the bytes freed.

    kept: for each, why it stays; None where it does not.
    """
    rows = [
        {
            "path": str(waste.path),
            "run": waste.run,
            "kind": waste.kind,
            "bytes": waste.bytes,
            "reason": why or waste.reason,
        }
        for waste, why in zip(found, kept, strict=True)
    ]
    freed = [row for row, why in zip(rows, kept, strict=True) if why is None]
    return {
        "study": study,
        "dry_run": dry_run,
        "freed": freed,
        "kept": [row for row, why in zip(rows, kept, strict=True) if why is not None],
        "bytes": sum(waste.bytes for waste, why in zip(found, kept, strict=True) if why is None),
    }


def print_waste(document: Mapping[str, Any]) -> None:
    """One row for each thing freed, and for each that stays; then the total."""
    rows = [*document["freed"], *document["kept"]]
    console = open_console()
    if rows:
        table = new_table("what", "run", "bytes", "reason", "path", left=2)
        for row in rows[:MOST_ROWS]:
            table.add_row(
                row["kind"], (row["run"] or "")[:8], format_bytes(row["bytes"]), row["reason"], Text(row["path"])
            )
        console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"{len(rows) - MOST_ROWS:,} more with --json")
    verb = "would be freed" if document["dry_run"] else "freed"
    stays = f"; {len(document['kept']):,} stay" if document["kept"] else ""
    console.print(
        f"{format_bytes(document['bytes'])} {verb}, {len(document['freed']):,} things{stays}", highlight=False
    )


def print_drill(result: DrillResult) -> None:
    """Kills by moment and signal, and what differs."""
    console = open_console()
    table = new_table("moment", *SIGNALS)
    for moment, counts in count_kills(result.kills):
        table.add_row(moment, *(str(count) for count in counts.values()))
    console.print(table)
    for difference in result.differences:
        line = f"difference: {difference.stage} {difference.key}: {difference.what}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"{len(result.kills)} kills, {result.attempts} attempts of {result.runs} runs, {len(result.differences)} differences"
    )


def open_console() -> Console:
    """The standard output, as every table goes to it."""
    console = Console(markup=False)
    # A table that is piped to a file or a pager is not cut at 80 columns.
    return console if console.is_terminal else Console(width=240, markup=False)


def new_table(*columns: str, left: int = 1) -> Table:
    """A plain table; the first `left` columns, and those that hold words, are aligned to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        text = index < left or name in ("stage", "axes", "state", "reason", "fingerprint", "job", "path")
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    return table


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
