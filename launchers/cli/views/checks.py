"""What `retain verify`, `retain gc`, `retain drill` and `retain doctor` print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retain.launchers.checks.finding import MISSING, NOTE, OK
from retain.launchers.console import MOST_ROWS, new_table, open_console, print_line
from retain.results.store.garbage import Waste
from retain.sweeps.base.units import counted, format_bytes

if TYPE_CHECKING:
    from rich.table import Table

    from retain.launchers.checks.drill import DrillResult

COLOURS = {OK: "green", NOTE: "yellow", MISSING: "red"}


def print_problems(document: Mapping[str, Any]) -> None:
    """Print every problem, and how many runs were checked."""
    console = open_console()
    for problem in document["problems"]:
        print_line(console, f"{problem['where']}: {problem['what']}")
    console.print(f"{counted(document['runs'], 'run')} checked, {counted(len(document['problems']), 'problem')}")


def waste_document(study: str | None, items: Sequence[tuple[Waste, str | None]], dry_run: bool) -> dict[str, Any]:
    """`retain gc --json`: what was freed (or would be), what is kept although nothing needs it, and the bytes freed.

    items: each with the reason why it is kept; None if it is freed.
    """
    freed = [vars(waste) for waste, why in items if why is None]
    kept = [vars(waste) | {"reason": why} for waste, why in items if why is not None]
    size = sum(row["bytes"] for row in freed)
    return {"study": study, "dry_run": dry_run, "freed": freed, "kept": kept, "bytes": size}


def print_waste(document: Mapping[str, Any]) -> None:
    """Print a row for each item freed or kept, then the total."""
    from rich.text import Text

    rows = [*document["freed"], *document["kept"]]
    console = open_console()
    if rows:
        table = new_table("what", "run", "bytes", "reason", "path", left=2)
        for row in rows[:MOST_ROWS]:
            size = format_bytes(row["bytes"])
            table.add_row(row["kind"], (row["run"] or "")[:8], size, row["reason"], Text(str(row["path"])))
        console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"{len(rows) - MOST_ROWS:,} more with --json")
    verb = "would free" if document["dry_run"] else "freed"
    kept = f"; kept {len(document['kept']):,}" if document["kept"] else ""
    print_line(console, f"{verb} {counted(len(document['freed']), 'item')}, {format_bytes(document['bytes'])}{kept}")


def print_drill(result: "DrillResult") -> None:
    """Print the kills by moment and signal, and the differences."""
    from retain.launchers.checks.drill import SIGNALS

    console = open_console()
    table = new_table("moment", *SIGNALS)
    for moment, counts in result.by_moment.items():
        table.add_row(moment, *map(str, counts.values()))
    console.print(table)
    for difference in result.differences:
        print_line(console, f"difference: {difference.stage} {difference.key}: {difference.what}")
    attempts = f"{counted(result.attempts, 'attempt')} of {counted(result.runs_compared, 'run')}"
    console.print(f"{counted(result.kills, 'kill')}, {attempts}, {counted(len(result.differences), 'difference')}")


def print_findings(document: Mapping[str, Any]) -> None:
    """Print the doctor's findings, then the partitions and what the probes found."""
    from rich.text import Text

    console = open_console()
    table = new_table("subject", "level", "what", header=False)
    for finding in document["findings"]:
        table.add_row(finding["subject"], Text(finding["level"], style=COLOURS[finding["level"]]), finding["what"])
    console.print(table, highlight=False)
    for title, rows in (("partitions", (document["slurm"] or {}).get("partitions")), ("probes", document["probes"])):
        if rows:
            console.print(f"\n{title}", style="bold")
            console.print(_table_of(rows), highlight=False)


def _table_of(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """A column for each field that is not a list; --json has all."""
    names = [name for name, value in rows[0].items() if not isinstance(value, list | tuple)]
    table = new_table(*(name.replace("_", " ") for name in names), left=len(names))
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in names))
    return table
