"""What the verbs print: documents for scripts (`--json`) and tables for people."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launchers.drill import SIGNALS, DrillResult, count_kills
from launchers.opened import OpenedStudy
from launchers.resources import Resources
from launchers.submit import Submitted
from results.collect import Waste
from results.losses import LOSSES, Row
from results.status import RunStatus, count_states, held_up_stages
from results.store import State
from results.verify import Problem
from sweeps.cost import total_cost
from sweeps.tree import STAGES, Tree, axes_label
from sweeps.units import format_bytes, format_seconds, format_size

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "queued": "yellow", "cancelled": "red"}
WATCH_EVERY_S = 1.0
MOST_ROWS = 40
"""Trials that `run` prints; `results` prints all."""


def print_json(document: Any) -> None:
    """One document on standard output; NaN never occurs in it."""
    print(json.dumps(document, indent=1, allow_nan=False))


def plan_document(opened: OpenedStudy, device: str) -> dict[str, Any]:
    """`retain plan --json`: the stages with their states, and the totals."""
    states = opened.store.states(opened.tree.stages)
    done = {key for key, state in states.items() if state.state == "done"}
    totals = total_cost(opened.tree, done, device)
    stages = [
        {
            "key": stage.key,
            "stage": stage.stage,
            "parent": stage.parent,
            "axes": stage.axes,
            "tokens": stage.tokens,
            "state": states[stage.key].state,
        }
        for stage in opened.tree.stages.values()
    ]
    return {
        "study": opened.tree.study,
        "provisional": opened.tree.provisional,
        "stages": stages,
        "totals": {name: getattr(totals, name) for name in totals.__dataclass_fields__},
    }


def print_plan(opened: OpenedStudy, document: Mapping[str, Any], device: str) -> None:
    """One row a kind of stage, the totals, and what sharing saves."""
    totals = document["totals"]
    table = _table("stage", "stages", "done", "tokens")
    for kind in STAGES:
        stages = [stage for stage in document["stages"] if stage["stage"] == kind]
        done = sum(stage["state"] == "done" for stage in stages)
        table.add_row(kind, f"{len(stages):,}", f"{done:,}", format_size(sum(stage["tokens"] for stage in stages)))
    sizes = {name: len(options) for name, options in opened.file.cases.items()}
    sizes |= {name: len(values) for name, values in opened.file.axes.items()}
    axes = ", ".join(f"{name} ({size})" for name, size in sizes.items()) or "none"
    shared, alone = totals["tokens"], totals["tokens_without_sharing"]
    lines = [
        f"axes: {axes}",
        f"{totals['trials']:,} trials are {totals['stages']:,} stages, {totals['to_train']:,} of them to train: "
        f"{format_size(totals['tokens_to_train'])} tokens, {totals['flops']:.3g} FLOPs, "
        f"{totals['gpu_hours']:.3g} hours on one {device}, {format_bytes(totals['disk_bytes'])} of weights",
        f"{format_size(shared)} tokens in all; one run per trial would train {format_size(alone)}, "
        f"{alone / shared:.2f} times as many",
    ]
    if document["provisional"]:
        lines.append(f"the data is not prepared, so the keys are provisional: retain data {opened.tree.study}")
    console = _console()
    console.print(Text(f"study {opened.tree.study}", style="bold"))
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


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
    table = _table("corpus", "sequence length", "training tokens", "held-out tokens", "fingerprint")
    for corpus in document["corpora"]:
        counts = (f"{corpus['sequence_length']:,}", f"{corpus['train_tokens']:,}", f"{corpus['heldout_tokens']:,}")
        table.add_row(corpus["name"], *counts, corpus["fingerprint"])
    _console().print(table)


def print_status(rows: Sequence[RunStatus]) -> None:
    console = _console()
    console.print(status_table(rows))
    _print_logs(console, rows)


def _print_logs(console: Console, rows: Sequence[RunStatus]) -> None:
    """Where those that failed have told why; a path in a column of the table would be broken."""
    for row in rows:
        if row.state == "failed" and row.log is not None:
            console.print(f"log of {row.key[:8]}: {row.log}", highlight=False, soft_wrap=True)


def status_table(rows: Sequence[RunStatus]) -> Table:
    """One row a run, and their counts as the title."""
    counts = ", ".join(f"{count} {state}" for state, count in count_states(rows).items()) or "no runs"
    table = _table("run", "stage", "axes", "state", "attempts", "progress", "loss", "tokens/s", "left", "job", "reason")
    table.title, table.title_justify = counts, "left"
    for row in rows:
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


def watch_status(rows: Callable[[], Sequence[RunStatus]]) -> None:
    """Show the status until nothing is running or queued."""
    with Live(console=_console(), auto_refresh=False) as live:
        while True:
            now = rows()
            live.update(status_table(now), refresh=True)
            if not any(row.state in ("running", "queued") for row in now):
                break
            time.sleep(WATCH_EVERY_S)
    _print_logs(_console(), now)


def print_results(opened: OpenedStudy, rows: Sequence[Row], shown: Sequence[Path]) -> None:
    """The loss table, and the paths of what was made beside it."""
    names = opened.file.labels
    table = _table(*names, "L_im", "L_ret", "L_ft", "L_pre", "tokens", left=len(names))
    for row in rows[:MOST_ROWS]:
        losses = ("" if row[name] is None else f"{row[name]:.4f}" for name in LOSSES)
        tokens = "" if row["tokens"] is None else format_size(row["tokens"])
        table.add_row(*(_value(row["axes"].get(name, "")) for name in names), *losses, tokens)
    console = _console()
    console.print(table)
    console.print(
        "losses in nats per token on held-out text: after post-training, and after fine-tuning (ret, ft, pre)"
    )
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
        "queued_already": result.queued_already,
        "done_already": result.done_already,
        "failed": list(result.failed),
        "deferred": list(result.deferred),
    }


def print_submitted(study: str, result: Submitted) -> None:
    """What was submitted, what was not, and why."""
    console = _console()
    stages = sum(len(keys) for _, keys in result.jobs)
    console.print(f"{stages:,} stages submitted in {len(result.jobs):,} jobs", highlight=False)
    lines = {
        f"{result.done_already:,} are done already": result.done_already,
        f"{result.queued_already:,} are queued or running already": result.queued_already,
        f"{len(result.adopted):,} jobs of an earlier submission without an answer were found again": len(
            result.adopted
        ),
        f"{len(result.failed):,} failed, were cancelled or skipped: retain retry {study}": len(result.failed),
        f"{len(result.deferred):,} are beyond your limit of jobs: the jobs that end submit them": len(result.deferred),
    }
    for line, count in lines.items():
        if count:
            console.print(line, highlight=False)


def print_scripts(opened: OpenedStudy, resources: Mapping[str, Resources], site: str | None) -> None:
    """The script of every family of siblings, as it would be submitted, and where its walltime comes from."""
    from launchers.snapshot import snapshot_code
    from launchers.submit import families, sbatch_script

    code = snapshot_code(opened.store.root)
    missing = [key for key, state in opened.store.states(opened.tree.stages).items() if state.state != "done"]
    for family in families(opened.store, missing):
        dependency = None if family.parent is None else f"afterany:<job of {family.parent[:8]}>"
        print(f"# {family.stage}: {' '.join(key[:8] for key in family.keys)}")
        print(f"# site {site or 'without a profile'}; walltime {resources[family.keys[0]].walltime}")
        print(sbatch_script(opened.store, family, dependency, code))


def print_why(document: Mapping[str, Any]) -> None:
    """What a key is made of, and the differences asked for."""
    console = _console()
    console.print(Text(f"{document['stage']} {document['key']}", style="bold"))
    table = _table("field", "value", left=2)
    for name, value in document["fields"].items():
        table.add_row(name, _value(value))
    console.print(table)
    other = document["compared_with"]
    if other is None:
        console.print("no other run of this kind in the store or the study to compare with")
    elif not document["differences"]:
        console.print(f"{other} is the same stage")
    else:
        table = _table("field", document["key"][:8], other[:8], left=3)
        for difference in document["differences"]:
            table.add_row(difference["field"], _value(difference["here"]), _value(difference["there"]))
        console.print(f"split from {other} by", highlight=False)
        console.print(table)


def print_problems(checked: int, problems: Sequence[Problem]) -> None:
    console = _console()
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
    console = _console()
    if rows:
        table = _table("what", "run", "bytes", "reason", "path", left=2)
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
    console = _console()
    table = _table("moment", *SIGNALS)
    for moment, counts in count_kills(result.kills):
        table.add_row(moment, *(str(count) for count in counts.values()))
    console.print(table)
    for difference in result.differences:
        line = f"difference: {difference.stage} {difference.key}: {difference.what}"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"{len(result.kills)} kills, {result.attempts} attempts of {result.runs} runs, {len(result.differences)} differences"
    )


def _console() -> Console:
    console = Console(markup=False)
    # A table that is piped to a file or a pager is not cut at 80 columns.
    return console if console.is_terminal else Console(width=240, markup=False)


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        text = index < left or name in ("stage", "axes", "state", "reason", "fingerprint", "job", "path")
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    return table


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
