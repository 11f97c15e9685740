"""The tables of the page, and how values read in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from retain.sweeps.base.redaction import redacted

DASH = "\N{EN DASH}"
"""Stands for a missing value."""


@dataclass(frozen=True)
class Cell:
    """One field of a table: its text and, for a number, the value to sort by."""

    text: str
    number: float | None = None
    mark: str = ""
    """A class of style.css: good, bad, open."""


@dataclass(frozen=True)
class Table:
    """One table with its caption; `name` is its id in the page."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    filters: int = 0
    """The number of columns at the beginning that the page can filter by."""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers, some of which may be missing."""
        return tuple(any(row[at].number is not None for row in self.rows) for at in range(len(self.columns)))


Rows = list[Sequence[Cell | str | float | None]]


def table(name: str, caption: str, columns: Iterable[str], rows: Rows, filters: int = 0) -> Table:
    """A table from rows of cells, texts (kept as they are) and numbers (None is missing)."""
    cells = tuple(tuple(_as_cell(value) for value in row) for row in rows)
    return Table(name, caption, tuple(columns), cells, filters)


def _as_cell(value: Cell | str | float | None) -> Cell:
    if value is None:
        return Cell(DASH)
    if isinstance(value, Cell):
        return value
    return Cell(value) if isinstance(value, str) else value_cell(value)


def value_cell(value: object) -> Cell:
    """A field's value; numbers sort as numbers."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(value_text(value), number)


def loss_cell(value: float | None) -> Cell:
    """A loss in nats per token; a dash, sorted last, if it is missing."""
    return Cell(DASH) if value is None else Cell(f"{value:.4f}", value)


def value_text(value: object) -> str:
    """A field's value as the page writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):  # a section, such as a component of a mixture; what is unset or off is left out
        fields = (f"{name} {value_text(part)}" for name, part in value.items() if part not in (None, False, 0))
        return ", ".join(fields) or "none"
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(part, dict) for part in value) else ", ").join(map(value_text, value)) or "none"
    text = redacted(str(value))
    # A text of white space alone, such as a separator of documents, would be invisible.
    return text if text.isprintable() and text.strip() else repr(text)


def moment(seconds: float) -> str:
    """A time in seconds since 1970 as date and time of day in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
