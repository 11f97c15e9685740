"""What `retain run`, `retain results` and `retain why` print."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from retain.launchers.console import cell, new_table, open_console, print_json, print_line
from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.figures.overview import draw_losses
from retain.results.figures.theory import draw_theory
from retain.results.store.loss_table import LOSSES, Row, csv_text, save_rows, trial_rows
from retain.results.store.readiness import blocked_stages
from retain.results.store.state import State
from retain.results.store.study_files import POINTS_STUDY, study_folder
from retain.results.tensorboard.views import link_runs, view_folder
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import write_text
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.linear import LinearStudy
from retain.sweeps.tree.tree import Tree, axes_label

MOST_ROWS = 40
"""The most trials in a printed table."""


def show_results(opened: OpenedStudy, as_json: bool, csv: Path | None, view: bool = False) -> None:
    """Print a row for each trial, also of partial results. Raises StudyError if `csv` cannot be written.

    view: whether to make the study's TensorBoard folder if it does not exist; an existing one is always updated.
    """
    tree, root = opened.tree, opened.store.root
    states = opened.store.states(tree.stages)
    rows = trial_rows(tree, opened.store, states)
    if csv is not None:
        try:
            write_text(csv, csv_text(rows))
        except OSError as error:
            raise StudyError(f"--csv {csv}: cannot be written ({error.strerror}); choose another file") from None
    made = []
    draw = draw_theory if isinstance(opened.file.study, LinearStudy) else draw_losses
    # A store that may only be read still shows its results.
    with contextlib.suppress(PermissionError):
        if any(state.state == "done" for state in states.values()):
            made = [save_rows(root, tree.study, rows), *draw(root, tree.study, rows)]
            # With ten thousand runs this takes as long as the rest of the command.
            if view or view_folder(root, tree.study).is_dir():
                made.append(link_runs(tree, opened.store, states=states))
    if as_json:
        print_json({"study": tree.study, "trials": rows})
    else:
        print_results(opened, rows, made)
        if (points := study_folder(root, tree.study) / POINTS_STUDY).exists():
            print(f"what a search has tried in addition: retain results {points}")


def print_results(opened: OpenedStudy, rows: Sequence[Row], made: Sequence[Path]) -> None:
    """Print the loss table, and the paths of what was made with it."""
    names = opened.file.labels
    table = new_table(*names, "L_im", "L_ret", "L_ft", "L_pre", "tokens", left=len(names))
    for row in rows[:MOST_ROWS]:
        losses = ("" if row[name] is None else f"{row[name]:.4f}" for name in LOSSES)
        tokens = "" if row["tokens"] is None else format_size(row["tokens"])
        table.add_row(*(cell(row["axes"].get(name, "")) for name in names), *losses, tokens)
    console = open_console()
    console.print(table)
    console.print(f"{opened.file.study.loss_unit}: after post-training (im), and after fine-tuning (ret, ft, pre)")
    if len(rows) > MOST_ROWS:
        where = f"in {made[0]}" if made else "with --json"
        print_line(console, f"{len(rows) - MOST_ROWS:,} more trials {where}")
    for path in made:
        print_line(console, str(path))


def print_failures(tree: Tree, states: Mapping[str, State]) -> int:
    """Print which stages failed and why, and how many stages they block; returns how many failed."""
    console = Console(stderr=True, markup=False)
    blocked = blocked_stages(tree.stages, states)
    failed = [tree.stages[key] for key, state in states.items() if state.state in ("failed", "cancelled")]
    for stage in failed:
        state = states[stage.key]
        below = sum(stage in tree.ancestors(key) for key in blocked)
        line = f"{state.state}: {stage.stage} {stage.key[:8]} ({axes_label(stage.axes)}): {state.reason}"
        print_line(console, line + (f"; {below} stages below it are blocked" if below else ""))
    return len(failed)


def print_why(document: Mapping[str, Any]) -> None:
    """Print the fields behind a key, and the differences asked for."""
    console = open_console()
    console.print(Text(f"{document['stage']} {document['key']}", style="bold"))
    table = new_table("field", "value", left=2)
    for name, value in document["fields"].items():
        table.add_row(name, cell(value))
    console.print(table)
    other = document["compared_with"]
    if other is None:
        console.print("there is no other run of this stage in the store or the study to compare with")
    elif not document["differences"]:
        console.print(f"{other} is the same stage")
    else:
        table = new_table("field", document["key"][:8], other[:8], left=3)
        for difference in document["differences"]:
            table.add_row(difference["field"], cell(difference["here"]), cell(difference["there"]))
        console.print(f"differs from {other} in", highlight=False)
        console.print(table)
