"""`retain plan` and `retain data --check`: what one study or several together would train and cost, and what they read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from retain.datamodules.corpora.check import Check
from retain.launchers.cli.views import new_table, open_console
from retain.launchers.planning.opened_study import OpenedStudy, open_study
from retain.results.store.runs import Store, open_store
from retain.results.store.throughput import measured_speeds
from retain.sweeps.base.units import format_bytes, format_size
from retain.sweeps.tree.cost import Parallelism, total_cost
from retain.sweeps.tree.data_facts import UNPREPARED
from retain.sweeps.tree.tree import STAGES, Tree, merged


@dataclass(frozen=True)
class Plan:
    """The trees of one study or several as one, in which a stage that they share is one."""

    opened: tuple[OpenedStudy, ...]
    store: Store
    tree: Tree


def open_plan(studies: Sequence[str], overrides: Sequence[str], store: Path) -> Plan:
    """Read the studies, each with all the overrides; reads no corpus and writes nothing. Raises StudyError."""
    opened = tuple(open_study(study, overrides, store) for study in studies)
    return Plan(opened, open_store(store), merged([one.tree for one in opened]))


def plan_document(plan: Plan, device: str) -> dict[str, Any]:
    """`retain plan --json`: the stages with their states, and the totals."""
    states = plan.store.states(plan.tree.stages)
    done = {key for key, state in states.items() if state.state == "done"}
    totals = total_cost(plan.tree, done, device, measured_speeds(plan.store), _running(plan.opened))
    data = _data_bytes(plan.opened)
    stages = [
        {
            "key": stage.key,
            "stage": stage.stage,
            "parent": stage.parent,
            "axes": stage.axes,
            "tokens": stage.tokens,
            "state": states[stage.key].state,
        }
        for stage in plan.tree.stages.values()
    ]
    sizes = asdict(totals) | {"data_bytes": data, "disk_peak_bytes": totals.disk_peak_bytes + data}
    return {
        "study": plan.tree.study,
        "provisional": plan.tree.provisional,
        "device": device,
        "stages": stages,
        "totals": sizes,
    }


def print_plan(plan: Plan, document: Mapping[str, Any]) -> None:
    """One row a kind of stage, the totals, what sharing saves, the price on each device and the disk."""
    totals = document["totals"]
    table = new_table("stage", "stages", "done", "tokens")
    for kind in STAGES:
        stages = [stage for stage in document["stages"] if stage["stage"] == kind]
        done = sum(stage["state"] == "done" for stage in stages)
        table.add_row(kind, f"{len(stages):,}", f"{done:,}", format_size(sum(stage["tokens"] for stage in stages)))
    shared, alone = totals["tokens"], totals["tokens_without_sharing"]
    lines = [
        *(_axes_line(one, len(plan.opened) > 1) for one in plan.opened),
        f"{totals['trials']:,} trials are {totals['stages']:,} stages, {totals['to_train']:,} of them to train: "
        f"{format_size(totals['tokens_to_train'])} tokens at most, {totals['flops']:.3g} FLOPs",
        f"{format_size(shared)} tokens in all; one run per trial would train {format_size(alone)}, "
        f"{alone / shared:.2f} times as many",
        f"GPU-hours: {', '.join(_hours(totals, device) for device in totals['gpu_hours_by_device'])}",
        f"disk: {format_bytes(totals['disk_bytes'])} of weights at rest ({format_bytes(totals['freeable_bytes'])} of them "
        f"freed by retain gc --weights) and {format_bytes(totals['data_bytes'])} of packed data; "
        f"{format_bytes(totals['disk_peak_bytes'])} at the peak",
    ]
    if document["provisional"]:
        names = " and ".join(one.tree.study for one in plan.opened if one.tree.provisional)
        lines.append(f"the data is not prepared, so the keys are provisional: retain data {names}")
    console = open_console()
    console.print(Text(f"{'studies' if len(plan.opened) > 1 else 'study'} {plan.tree.study}", style="bold"))
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _axes_line(opened: OpenedStudy, named: bool) -> str:
    sizes = {name: len(options) for name, options in opened.file.cases.items()}
    sizes |= {name: len(values) for name, values in opened.file.axes.items()}
    axes = ", ".join(f"{name} ({size})" for name, size in sizes.items()) or "none"
    return f"axes{f' of {opened.tree.study}' if named else ''}: {axes}"


def _hours(totals: Mapping[str, Any], device: str) -> str:
    """`H100 143 (12 of 20 stages as measured)`."""
    known = totals["measured"][device]
    basis = f" ({known:,} of {totals['to_train']:,} stages as measured)" if known else ""
    return f"{device} {totals['gpu_hours_by_device'][device]:.3g}{basis}"


def _running(opened: Sequence[OpenedStudy]) -> dict[str, Parallelism]:
    """How each kind of stage runs: of several studies, the one that takes most."""
    made = {}
    for kind in STAGES:
        executions = [one.file.study.execution.of_stage(kind) for one in opened]
        made[kind] = Parallelism(
            max(execution.devices for execution in executions),
            max(one.slurm.at_a_time for one in executions),
            min(one.pack for one in executions),
        )
    return made


def _data_bytes(opened: Sequence[OpenedStudy]) -> int:
    """Of the packed corpora, each once; an unprepared one counts the tokens it is cut at, none if it is read whole."""
    sizes = {}
    for one in opened:
        for (name, length), facts in one.facts.corpora.items():
            width = 2 if one.facts.vocabulary <= 2**16 else 4
            unread = facts.fingerprint.startswith(UNPREPARED)
            tokens = one.file.study.corpora[name].tokens if unread else (facts.train or 0) * length
            sizes[facts.fingerprint] = (tokens or 0) * width
    return sum(sizes.values())


def checks_document(study: str, checks: Sequence[Check]) -> dict[str, Any]:
    """`retain data --check --json`: what a study reads, and whether all of it resolves."""
    rows = [asdict(check) | {"pin": check.pin} for check in checks]
    return {"study": study, "resolves": not any(check.problem for check in checks), "checks": rows}


def print_checks(document: Mapping[str, Any]) -> None:
    """One row for each thing that is read; then what is wrong, with its cure, and how to pin what is on a branch."""
    table = new_table("name", "source", "resolves", "revision", "begins with", left=5)
    for row in document["checks"]:
        begins = " ".join((row["begins"] or "").split())[:40]
        revision = row["commit"] or row["revision"] or ""
        table.add_row(row["name"], row["source"], "no" if row["problem"] else "yes", revision, begins)
    console = open_console()
    console.print(table)
    for row in document["checks"]:
        if row["problem"]:
            console.print(f"{row['name']}: {row['problem']}", highlight=False, soft_wrap=True)
    pins = [row["pin"] for row in document["checks"] if row["pin"]]
    if pins:
        console.print(f"on a branch, which may move; to pin: {' '.join(pins)}", highlight=False, soft_wrap=True)
