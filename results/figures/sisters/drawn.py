"""The figures of studies of other papers: which one a study has, and its files."""

from collections.abc import Callable, Sequence
from pathlib import Path

from retain.results.figures.sisters.forgetting_law import forgetting_figure
from retain.results.figures.sisters.lines import LineFigure, draw_lines
from retain.results.figures.sisters.overtraining import overtraining_figure
from retain.results.figures.sisters.replay_schedules import replay_figure
from retain.results.figures.sisters.specialised import specialised_figure
from retain.results.figures.style import DrawnFigure
from retain.results.store.loss_table import Row
from retain.results.store.study_files import study_folder

FIGURES: Sequence[Callable[[Sequence[Row]], LineFigure | None]] = (
    forgetting_figure,
    replay_figure,
    overtraining_figure,
    specialised_figure,
)
"""Each returns the figure of its design; None for a study of another design."""


def draw_sister_figures(
    store: Path, study: str, rows: Sequence[Row], overrides: Sequence[str] = ()
) -> list[DrawnFigure]:
    """Draw the figure of each paper whose design a study has into the folder figures/ of `study_folder`."""
    folder = study_folder(store, study, overrides) / "figures"
    return [draw_lines(folder, study, figure) for make in FIGURES if rows and (figure := make(rows)) is not None]
