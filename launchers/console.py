"""Tables and JSON documents on standard output, the same everywhere. Documents need no rich, so tables import it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORDS = ("stage", "axes", "state", "reason", "fingerprint", "job", "path", "what", "level", "detail", "freed")
"""Columns that hold words, which are aligned to the left."""
MOST_ROWS = 40
"""The most rows of a printed table; --json has all."""


def print_json(document: Any) -> None:
    """Print one document (a mapping or a dataclass), each element of a list on its own line. Raises ValueError for NaN."""
    fields: Mapping[str, Any] = document if isinstance(document, Mapping) else _plain(document)
    print("{\n" + ",\n".join(f' "{name}": {_json_text(value)}' for name, value in fields.items()) + "\n}")


def open_console() -> "Console":
    """Standard output for tables; a table that is piped to a file or a pager is as wide as its cells."""
    from rich.console import Console

    console = Console(markup=False)
    return console if console.is_terminal else Console(width=10_000, markup=False)


def print_line(console: "Console", line: str) -> None:
    """Print a line as it is, without colours or breaks."""
    console.print(line, highlight=False, soft_wrap=True)


def new_table(*columns: str, left: int = 1, header: bool = True) -> "Table":
    """A plain table; the first `left` columns, and those that hold words, are aligned to the left."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left or name in WORDS else "right", overflow="fold")
    return table


def _plain(value: Any) -> Any:
    """A path as text, a dataclass as its fields; unlike `dataclasses.asdict` it does not copy nested mappings."""
    if isinstance(value, Path):
        return str(value)
    own: dict[str, Any] = getattr(value, "__dict__", {})
    # With nothing else in it, its dictionary is the fields in their order.
    if len(own) == len(value.__dataclass_fields__):
        return own
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _json_text(value: Any) -> str:
    # Without `indent` the standard library encodes in C, which is ten times as fast.
    if isinstance(value, list) and value:
        # `dumps` makes a new encoder each time; documents hold no cycles, and to look for them takes a sixth of the time.
        encode = json.JSONEncoder(allow_nan=False, default=_plain, check_circular=False).encode
        return "[\n" + ",\n".join(f"  {encode(one)}" for one in value) + "\n ]"
    return json.dumps(value, indent=1, allow_nan=False, default=_plain).replace("\n", "\n ")
