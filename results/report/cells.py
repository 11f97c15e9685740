"""What the page's tables are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Cell:
    """One field of a table: what is read, and, where it is a number, what it is sorted by."""

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


Rows = list[Sequence[Cell | str]]


def table(name: str, caption: str, columns: Sequence[str], rows: Rows) -> Table:
    """A table whose plain texts become cells."""
    cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(name, caption, tuple(columns), cells)


DASH = "\N{EN DASH}"
"""Stands for what is not there."""


def count(number: int) -> Cell:
    """A whole number, with its thousands set off."""
    return Cell(f"{number:,}", number)


def loss(value: float | None) -> Cell:
    """nats per token; a dash where it is missing, sorted last."""
    return Cell(DASH) if value is None else Cell(f"{value:.4f}", value)


def value_text(value: object) -> str:
    """A field's value as the page writes it."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or "none"
    text = str(value)
    # White space alone, such as a separator of documents, would not be seen.
    return text if text.isprintable() and text.strip() else repr(text)


def moment(seconds: float) -> str:
    """A time in seconds since 1970 as date and time of day in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
