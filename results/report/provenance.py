"""How a study's results were made: commands, versions, machines, dates, attempts and interruptions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retain.results.report.cells import Cell, Rows, Table, moment, table
from retain.results.store.runs import SPEC, Store
from retain.results.store.state import DAMAGED, State, attempt_costs
from retain.sweeps.base.units import counted, format_seconds
from retain.sweeps.tree.tree import Tree

MOST_INTERRUPTIONS = 100
"""Only the last ones are listed if there are more."""


@dataclass(frozen=True)
class Origin:
    """What made the page itself."""

    command: str
    """The study and its overrides, as every verb takes them."""
    versions: Mapping[str, str]
    commit: str | None
    """The commit of the code and whether the code was changed since; None outside a git repository."""
    machine: str
    moment: float
    """Seconds since 1970."""


def device_seconds(state: State) -> float:
    """Seconds of all attempts at a run, times the processes of each. A running attempt counts up to its heartbeat."""
    return 3600 * sum(cost.device_hours for cost in attempt_costs(state))


def provenance_table(tree: Tree, store: Store, states: Mapping[str, State], origin: Origin) -> Table:
    """One fact a row: what made this page, what made the runs, and how long it took."""
    readable = (key for key in tree.stages if states[key].state != DAMAGED)
    specs = [store.run(key).spec() for key in readable if (store.root / key / SPEC).exists()]
    lines: Rows = [
        ("commands", f"retain run {origin.command}\nretain report {origin.command}"),
        ("this page was written", moment(origin.moment)),
        ("on", origin.machine),
        ("code", origin.commit or "not in a git repository"),
        ("versions of this page", _versions_text(origin.versions)),
        *(("versions of the runs", text) for text in dict.fromkeys(_versions_text(spec["versions"]) for spec in specs)),
        *(("trained on", text) for text in dict.fromkeys(_device_text(spec["execution"]) for spec in specs)),
    ]
    if attempts := [attempt for state in states.values() for attempt in state.attempts]:
        ends = [attempt.end or attempt.start for attempt in attempts]
        seconds = sum(end - attempt.start for attempt, end in zip(attempts, ends, strict=True))
        lines += [
            ("first attempt", moment(min(attempt.start for attempt in attempts))),
            ("last change", moment(max(ends))),
            ("time in training and evaluation", f"{format_seconds(seconds)} over all attempts"),
            ("attempts", _attempts_text(states)),
            *(("steps", text) for text in _steps_texts(states)),
            ("machines", f"{len({attempt.host for attempt in attempts}):,}"),
        ]
    return table("making", "Commands, versions, machines", ("", ""), lines)


def interruptions(states: Mapping[str, State]) -> Table | None:
    """Every attempt that did not finish its run; None if there is none."""
    found = [
        (attempt.end or attempt.start, key, number, attempt)
        for key, state in states.items()
        for number, attempt in enumerate(state.attempts, start=1)
        if attempt.cause not in ("finished", None) or attempt.note
    ]
    if not found:
        return None
    rows: Rows = []
    for end, key, number, attempt in sorted(found, key=lambda one: one[0])[-MOST_INTERRUPTIONS:]:
        note = "; ".join(part for part in (attempt.failure, attempt.note) if part)
        rows.append([Cell(moment(end), end), key[:8], f"{number}", attempt.cause or "runs", note])
    shown = f", the last {MOST_INTERRUPTIONS}" if len(found) > MOST_INTERRUPTIONS else ""
    caption = f"{counted(len(found), 'interruption')}{shown}: the next attempt resumes from the last checkpoint"
    return table("interruptions", caption, ("when", "run", "attempt", "cause", "note"), rows)


def _attempts_text(states: Mapping[str, State]) -> str:
    counts = [len(state.attempts) for state in states.values() if state.attempts]
    several = sum(count > 1 for count in counts)
    return f"{sum(counts):,} for {len(counts):,} runs; runs with more than one: {several:,}"


def _steps_texts(states: Mapping[str, State]) -> list[str]:
    """How the steps of runs were computed, by the last attempt of each: `bf16, compiled: 12 runs`."""
    counts = Counter(state.attempts[-1].steps for state in states.values() if state.attempts)
    return [f"{steps}: {counted(count, 'run')}" for steps, count in counts.most_common() if steps]


def _versions_text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _device_text(execution: Mapping[str, Any]) -> str:
    """The device, processes and precision of a run."""
    precision = "" if execution["precision"] == "auto" else f", {execution['precision']}"
    device = "GPU if available, else CPU" if execution["accelerator"] == "auto" else execution["accelerator"]
    processes = "1 process" if execution["devices"] == 1 else f"{execution['devices']} processes"
    return f"{device}, {processes} per stage{precision}"
