"""Frontiers in planes that a user names: of any two losses of the matrix, or metrics of tasks."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.figures.catalogue import REVERSED, FigureSpec, Side
from retain.results.figures.paper import draw_figure
from retain.results.figures.style import DrawnFigure
from retain.results.store.loss_table import Row, loss_at, loss_columns, named_losses
from retain.results.store.study_files import study_folder
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.section import unknown_loss

EXAMPLE = "such as L_ret,L_ft"


@dataclass(frozen=True)
class NamedPlane:
    """Two columns of the loss table that trade off against each other."""

    y: str
    """One of the paper's four losses, STAGE/CORPUS, or STAGE/TASK/METRIC."""
    x: str


def named_planes(asked: Sequence[str], rows: Sequence[Row]) -> list[NamedPlane]:
    """The planes that a user asks for, each as `Y,X`: names of columns, or the paper's symbols. Raises StudyError."""
    columns = {symbol: loss for loss, symbol in SYMBOLS.items()}
    known = [*named_losses(rows), *loss_columns(rows)]
    found = []
    for text in asked:
        names = [columns.get(name.strip(), name.strip()) for name in text.split(",")]
        if len(names) != 2 or names[0] == names[1]:
            raise StudyError(f"--plane {text}: a plane is two different losses or metrics, Y,X, {EXAMPLE}")
        if unknown := [name for name in names if name not in known]:
            there = [SYMBOLS.get(name, name) for name in known]
            raise StudyError(f"--plane {text}: {unknown_loss(SYMBOLS.get(unknown[0], unknown[0]), there)}")
        found.append(NamedPlane(*names))
    return list(dict.fromkeys(found))


def draw_planes(
    store: Path,
    study: str,
    rows: Sequence[Row],
    planes: Sequence[NamedPlane],
    higher: Collection[str],
    overrides: Sequence[str] = (),
) -> list[DrawnFigure]:
    """Draw the frontiers of the finished trials in each plane into the folder figures/ of `study_folder`.

    higher: the metrics where higher is better. Their axes are reversed, so that lower left is better everywhere.
    """
    folder = study_folder(store, study, overrides) / "figures"
    drawn = []
    for plane in planes:
        y, x = (_axis(name, higher) for name in (plane.y, plane.x))
        name = "frontier-" + re.sub(r"[^\w.]+", "-", f"{plane.y}-{plane.x}")
        question = " and ".join(SYMBOLS.get(one, one) for one in (plane.y, plane.x))
        question = f"What does each method trade between {question}?"
        spec = FigureSpec(name, question, (Side(x, y),), published=False, title="Frontier")
        shown = [row | {y: _value(row, plane.y, higher), x: _value(row, plane.x, higher)} for row in rows]
        drawn.append(draw_figure(folder, study, spec, shown))
    return drawn


def _axis(name: str, higher: Collection[str]) -> str:
    return f"{REVERSED}{name}" if name in higher else name


def _value(row: Row, name: str, higher: Collection[str]) -> float | None:
    """The value of a trial in a column, negative on a reversed axis."""
    value = loss_at(row, name)
    return -value if value is not None and name in higher else value
