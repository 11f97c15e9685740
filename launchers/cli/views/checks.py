"""What `retain verify`, `retain gc`, `retain drill` and `retain doctor` print."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from retain.launchers.checks.drill import SIGNALS, DrillResult, count_kills
from retain.launchers.checks.finding import MISSING, NOTE, OK
from retain.launchers.console import new_table, open_console, print_line
from retain.results.store.garbage import Waste
from retain.results.store.verify import Problem
from retain.sweeps.base.units import format_bytes

COLOURS = {OK: "green", NOTE: "yellow", MISSING: "red"}
MOST_ROWS = 40
"""The most rows of a printed table; --json has all."""


def print_problems(checked: int, problems: Sequence[Problem]) -> None:
    """Print every problem, and how many runs were checked."""
    console = open_console()
    for problem in problems:
        print_line(console, f"{problem.where}: {problem.what}")
    console.print(f"{checked:,} runs checked, {len(problems):,} problems")


def waste_document(
    study: str | None, found: Sequence[Waste], kept: Sequence[str | None], dry_run: bool
) -> dict[str, Any]:
    """`retain gc --json`: what was freed (or would be), what is kept although nothing needs it, and the bytes freed.

    kept: for each item, why it is kept; None if it is freed.
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
    return {
        "study": study,
        "dry_run": dry_run,
        "freed": [row for row, why in zip(rows, kept, strict=True) if why is None],
        "kept": [row for row, why in zip(rows, kept, strict=True) if why is not None],
        "bytes": sum(waste.bytes for waste, why in zip(found, kept, strict=True) if why is None),
    }


def print_waste(document: Mapping[str, Any]) -> None:
    """Print a row for each item freed or kept, then the total."""
    rows = [*document["freed"], *document["kept"]]
    console = open_console()
    if rows:
        table = new_table("what", "run", "bytes", "reason", "path", left=2)
        for row in rows[:MOST_ROWS]:
            size = format_bytes(row["bytes"])
            table.add_row(row["kind"], (row["run"] or "")[:8], size, row["reason"], Text(row["path"]))
        console.print(table)
    if len(rows) > MOST_ROWS:
        console.print(f"{len(rows) - MOST_ROWS:,} more with --json")
    verb = "would free" if document["dry_run"] else "freed"
    kept = f"; kept {len(document['kept']):,}" if document["kept"] else ""
    print_line(console, f"{verb} {len(document['freed']):,} items, {format_bytes(document['bytes'])}{kept}")


def print_drill(result: DrillResult) -> None:
    """Print the kills by moment and signal, and the differences."""
    console = open_console()
    table = new_table("moment", *SIGNALS)
    for moment, counts in count_kills(result.kills):
        table.add_row(moment, *(str(count) for count in counts.values()))
    console.print(table)
    for difference in result.differences:
        print_line(console, f"difference: {difference.stage} {difference.key}: {difference.what}")
    console.print(
        f"{len(result.kills)} kills, {result.attempts} attempts of {result.runs} runs, {len(result.differences)} differences"
    )


def print_findings(document: Mapping[str, Any]) -> None:
    """Print the doctor's findings, then the partitions and what the probes found."""
    console = open_console()
    table = new_table("subject", "level", "what", header=False)
    for finding in document["findings"]:
        table.add_row(finding["subject"], Text(finding["level"], style=COLOURS[finding["level"]]), finding["what"])
    console.print(table, highlight=False)
    for title, rows in (("partitions", (document["slurm"] or {}).get("partitions")), ("probes", document["probes"])):
        if rows:
            console.print(f"\n{title}", style="bold")
            console.print(_table_of(rows), highlight=False)


def _table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = new_table(*(name.replace("_", " ") for name in rows[0]), left=len(rows[0]))
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row.values()))
    return table
