"""How a study's results were made: commands, versions, machines, dates, attempts and interruptions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retain.results.report.cells import Cell, Rows, Table, moment, table
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, State
from retain.sweeps.base.units import format_seconds
from retain.sweeps.tree.tree import Tree

MOST_INTERRUPTIONS = 100
"""More than these are counted, not listed."""
UNDISTURBED = ("finished", None)


@dataclass(frozen=True)
class Origin:
    """What made the report itself."""

    command: str
    """The verbs' common part: the study and its overrides."""
    versions: Mapping[str, str]
    commit: str | None
    """Of the code, and whether it was changed; None outside a git repository."""
    machine: str
    moment: float
    """Seconds since 1970."""


def making_table(tree: Tree, store: Store, states: Mapping[str, State], origin: Origin) -> Table:
    """One line a fact."""
    attempts = [attempt for state in states.values() for attempt in state.attempts]
    trained = [attempt for attempt in attempts if attempt.end is not None]
    lines: Rows = [
        ("commands", f"retain run {origin.command}\nretain report {origin.command}"),
        ("this page was written", moment(origin.moment)),
        ("on", origin.machine),
        ("code", origin.commit or "not in a git repository"),
        ("versions of this page", _versions(origin.versions)),
        *(("versions of the runs", text) for text in _versions_of_runs(tree, store)),
        *(("trained on", text) for text in _placements(tree, store)),
    ]
    if attempts:
        last = max(attempt.end or attempt.start for attempt in attempts)
        seconds = sum((attempt.end or attempt.start) - attempt.start for attempt in trained)
        lines += [
            ("first attempt", moment(min(attempt.start for attempt in attempts))),
            ("last change", moment(last)),
            ("time in training and evaluation", f"{format_seconds(seconds)} over all attempts"),
            ("attempts", _attempts_text(states)),
            ("machines", f"{len({attempt.host for attempt in attempts}):,}"),
        ]
    return table("making", "Commands, versions, machines", ("", ""), lines)


def interruptions(states: Mapping[str, State]) -> Table | None:
    """Every attempt that did not end with the run done; None where there is none."""
    found = [
        (attempt.end or attempt.start, key, number, attempt)
        for key, state in states.items()
        for number, attempt in enumerate(state.attempts, start=1)
        if attempt.cause not in UNDISTURBED or attempt.note
    ]
    if not found:
        return None
    rows: Rows = [
        [Cell(moment(end), end), key[:8], f"{number}", attempt.cause or "runs", _told(attempt)]
        for end, key, number, attempt in sorted(found, key=lambda one: one[0])[-MOST_INTERRUPTIONS:]
    ]
    shown = f", the last {MOST_INTERRUPTIONS}" if len(found) > MOST_INTERRUPTIONS else ""
    caption = f"{len(found):,} interruptions{shown}: the next attempt goes on from the last saved state"
    return table("interruptions", caption, ("when", "run", "attempt", "cause", "note"), rows)


def _told(attempt: Attempt) -> str:
    return "; ".join(part for part in (attempt.failure, attempt.note) if part)


def _attempts_text(states: Mapping[str, State]) -> str:
    total = sum(len(state.attempts) for state in states.values())
    runs = sum(bool(state.attempts) for state in states.values())
    again = sum(len(state.attempts) > 1 for state in states.values())
    return f"{total:,} at {runs:,} runs; {again:,} of them took more than one"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _versions_of_runs(tree: Tree, store: Store) -> list[str]:
    """One text for each set of versions that the study's registered runs were planned with."""
    return list(dict.fromkeys(_versions(spec["versions"]) for spec in _specs(tree, store)))


def _placements(tree: Tree, store: Store) -> list[str]:
    """Device, processes and precision of the registered runs, each combination once."""
    texts = []
    for spec in _specs(tree, store):
        run = spec["execution"]
        precision = "" if run["precision"] == "auto" else f", {run['precision']}"
        device = "GPU where there was one, else CPU" if run["accelerator"] == "auto" else run["accelerator"]
        processes = "1 process" if run["devices"] == 1 else f"{run['devices']} processes"
        texts.append(f"{device}, {processes} a stage{precision}")
    return list(dict.fromkeys(texts))


def _specs(tree: Tree, store: Store) -> list[dict[str, Any]]:
    return [store.run(key).spec() for key in tree.stages if (store.root / key / "stage.json").exists()]
