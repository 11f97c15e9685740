"""What `retain plan` and `retain data --check` print."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from retain.datamodules.corpora.check import Check
from retain.launchers.console import new_table, open_console, print_line
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.planning.plan import Plan, PlannedStudy, PlanTotals
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.base.units import counted, format_bytes, format_seconds, format_size
from retain.sweeps.schema.families.table import FAMILIES
from retain.sweeps.schema.section import value_name
from retain.sweeps.tree.data_facts import Reading, reading_remarks

if TYPE_CHECKING:
    from rich.table import Table

    from retain.launchers.planning.power import PowerPlan


def print_plan(plan: Plan, prepare: Sequence[str]) -> None:
    """Print a row for each stage, the totals, what sharing saves, the hours on each device, and the disk.

    prepare: the commands that prepare the data that is missing.
    """
    from rich.text import Text

    totals = plan.totals
    table = new_table("stage", "stages", "done", "tokens")
    for name in plan.chain:
        stages = [stage for stage in plan.stages if stage.stage == name]
        done = sum(stage.state == "done" for stage in stages)
        table.add_row(name, f"{len(stages):,}", f"{done:,}", format_size(sum(stage.tokens for stage in stages)))
    lines = [
        *(_axes_line(one, len(plan.studies) > 1) for one in plan.studies),
        *(_looks_line(one, len(plan.studies) > 1) for one in plan.studies if one.looks),
        f"{counted(totals.trials, 'trial')} in {counted(totals.stages, 'stage')}, "
        f"{totals.to_train:,} to train: at most {format_size(totals.tokens_to_train)} tokens, {totals.flops:.3g} FLOPs",
        f"{format_size(totals.tokens)} tokens in all; one run per trial would train "
        f"{format_size(totals.tokens_without_sharing)}, {totals.tokens_without_sharing / totals.tokens:.2f} times as many",
        f"GPU-hours: {', '.join(_hours(totals, device) for device in totals.gpu_hours_by_device)}",
        f"disk: {format_bytes(totals.disk_bytes)} of weights at rest ({format_bytes(totals.freeable_bytes)} of them "
        f"can be freed when their stages are done) and {format_bytes(totals.data_bytes)} of packed data; "
        f"{format_bytes(totals.disk_peak_bytes)} at the peak",
    ]
    if totals.preparation_tokens:
        lines.append(_preparation(totals))
    if totals.optimizer_bytes:
        lines.append(
            f"{format_bytes(totals.optimizer_bytes)} of the weights are AdamW moments that later stages continue with"
        )
    if (measured := plan.evaluations).runs:
        lines.append(
            f"{counted(measured.runs, 'evaluation')}, {measured.to_measure:,} of them to measure: "
            f"{format_size(measured.tokens)} tokens, {measured.flops:.3g} FLOPs"
            f"{'; corpora that are not prepared count as 0' if plan.provisional and measured.to_measure else ''}"
        )
    console = open_console()
    console.print(Text(f"{'studies' if len(plan.studies) > 1 else 'study'} {plan.study}", style="bold"))
    console.print(table)
    for line in lines:
        print_line(console, line)
    if sum(item.bytes > 0 for item in plan.disk) > 1:
        console.print(_disk_table(plan))
    unprepared = [f"the data is not prepared, so the keys are provisional: {command}" for command in prepare]
    for line in (*plan.defaults, *plan.notes, *unprepared):
        print_line(console, line)


def _preparation(totals: PlanTotals) -> str:
    """What it takes to prepare the data that is not prepared."""
    cores = usable_cores()
    hours = totals.preparation_core_hours
    basis = "as measured in this store" if totals.preparation_measured else "modelled"
    parts = " and ".join(totals.preparation_sized_by)
    sized = f"bytes per token as in the parts of {parts}, 4 in others" if parts else "at 4 bytes of source per token"
    here = f"{format_seconds(3600 * hours / cores)} on the {counted(cores, 'core')} here"
    return (
        f"to prepare the data: about {format_size(totals.preparation_tokens)} tokens ({sized}), {hours:.3g} core-hours at "
        f"{format_size(totals.preparation_speed)} tokens per second per core ({basis}), {here}"
    )


def _disk_table(plan: Plan) -> "Table":
    """A row for each thing that takes disk, and when it is freed."""
    table = new_table("disk", "bytes", "freed")
    for item in plan.disk:
        if item.bytes:
            table.add_row(item.what, format_bytes(item.bytes), item.freed)
    table.add_row("the peak: all of these together", format_bytes(plan.totals.disk_peak_bytes), "")
    return table


def print_power(plan: "PowerPlan") -> None:
    """Print a row for each claim with the seeds that it needs, then what the seeds cost."""
    from rich.text import Text

    def number(seeds: int | None) -> str:
        return f"> {plan.most}" if seeds is None else str(seeds)

    table = new_table("claim", "in words", "effect", "spread", "seeds", "cautious", left=2)
    for claim in plan.claims:
        # Of several deciding effects the weakest, in units of its spread.
        shown = min(claim.effects, key=lambda effect: abs(effect.mean) / (effect.spread or 1))
        needs = (number(claim.seeds), number(claim.cautious_seeds))
        table.add_row(claim.claim, claim.words, f"{shown.mean:+.3g}", f"{shown.spread:.3g}", *needs)
    basis = "the pilot's effects" if plan.effect is None else f"an effect of {plan.effect:g} for every claim"
    console = open_console()
    console.print(Text(f"study {plan.study}", style="bold"))
    console.print(table)
    print_line(
        console,
        f"seeds: enough to decide with a probability of {plan.chance:.0%}, given {basis} and the spread of {plan.pilot} over "
        f"{plan.pilot_seeds} seeds; cautious: given the upper 80% limit of that spread",
    )
    for price in plan.prices:
        totals = price.totals
        print_line(
            console,
            f"{price.seeds} seeds decide {price.decides} of {len(plan.claims)}: {totals.trials:,} trials, {totals.to_train:,} "
            f"stages to train, at most {format_size(totals.tokens_to_train)} tokens, {_hours(totals, plan.device)} hours",
        )


def checks_document(study: str, checks: Sequence[Check]) -> dict[str, Any]:
    """`retain data --check --json`: what a study reads, and whether all of it resolves."""
    rows = [asdict(check) | {"pin": check.pin} for check in checks]
    return {"study": study, "resolves": not any(check.problem for check in checks), "checks": rows}


def print_checks(document: Mapping[str, Any]) -> None:
    """Print a row for each source; then the problems with their cures, and how to pin what is on a branch."""
    table = new_table("name", "source", "resolves", "revision", "begins with", left=5)
    for row in document["checks"]:
        begins = " ".join((row["begins"] or "").split())[:40]
        revision = row["commit"] or row["revision"] or ""
        table.add_row(row["name"], row["source"], "no" if row["problem"] else "yes", revision, begins)
    console = open_console()
    console.print(table)
    for row in document["checks"]:
        if row["problem"]:
            print_line(console, f"{row['name']}: {row['problem']}")
    pins = [row["pin"] for row in document["checks"] if row["pin"]]
    if pins:
        print_line(console, f"on a branch, which may move; to pin: {' '.join(pins)}")


def data_document(opened: OpenedStudy) -> dict[str, Any]:
    """`retain data --json`: the tokeniser and the corpora of a study, in sequences and tokens."""
    corpora = [
        {
            "name": name,
            "sequence_length": length,
            "fingerprint": facts.fingerprint,
            "train_tokens": (facts.train or 0) * length,
            "heldout_tokens": (facts.heldout or 0) * length,
            "reading": _reading(facts.reading),
            "remarks": [] if facts.reading is None else reading_remarks(facts.reading),
        }
        | ({"values": list(facts.values.names)} if facts.values else {})
        for (name, length), facts in opened.facts.corpora.items()
    ]
    checkpoints = [
        {
            "name": name,
            "fingerprint": facts.fingerprint,
            "family": facts.family,
            "parameters": facts.counts.parameters if facts.counts else 0,
        }
        for (name, _, _), facts in opened.facts.checkpoints.items()
    ]
    tokenizer = {"fingerprint": opened.facts.tokenizer, "vocabulary": opened.facts.vocabulary}
    return {
        "study": opened.tree.study,
        "store": str(opened.store.root),
        "tokenizer": tokenizer,
        "corpora": corpora,
        "checkpoints": checkpoints,
    }


def _reading(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    return asdict(reading) | {"tokens_per_document": round(reading.tokens_per_document, 1)}


def print_data(document: Mapping[str, Any]) -> None:
    """Print a line for each checkpoint, a row for each corpus, and what was skipped while it was read."""
    table = new_table(
        *("corpus", "length", "training tokens", "held-out tokens", "documents", "tokens each", "exact copies"),
        "fingerprint",
    )
    remarks = {}
    for corpus in document["corpora"]:
        reading, remarks[corpus["name"]] = corpus["reading"], corpus["remarks"]
        counts = (f"{corpus['sequence_length']:,}", f"{corpus['train_tokens']:,}", f"{corpus['heldout_tokens']:,}")
        read = (f"{reading[name]:,}" for name in ("documents", "tokens_per_document", "duplicates")) if reading else ()
        table.add_row(corpus["name"], *counts, *(read or ("", "", "")), corpus["fingerprint"])
    console = open_console()
    for one in document["checkpoints"]:
        title = FAMILIES[one["family"]].title
        size = format_size(one["parameters"])
        print_line(console, f"checkpoint {one['name']}: {title}, {size} parameters, {one['fingerprint']}")
    console.print(table)
    for corpus in document["corpora"]:
        if values := corpus.get("values"):
            parts = (value_name(corpus["name"], value) for value in values)
            print_line(console, f"losses by value: {', '.join(parts)}")
    for name, words in remarks.items():
        if words:
            print_line(console, f"{name}: {'; '.join(words)}")


def _axes_line(study: PlannedStudy, named: bool) -> str:
    axes = ", ".join(f"{name} ({size})" for name, size in study.axes.items()) or "none"
    return f"axes{f' of {study.study}' if named else ''}: {axes}"


def _looks_line(study: PlannedStudy, named: bool) -> str:
    counts = ", ".join(map(str, study.looks))
    return f"looks{f' of {study.study}' if named else ''} at {counts} seeds; the totals below are for the most seeds"


def _hours(totals: PlanTotals, device: str) -> str:
    """`H100 143 (12 of 20 stages as measured)`."""
    known = totals.measured[device]
    basis = f" ({known:,} of {totals.to_train:,} stages as measured)" if known else ""
    return f"{device} {totals.gpu_hours_by_device[device]:.3g}{basis}"
