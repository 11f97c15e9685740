"""What `retain run` and `retain results` end with: the rows kept, the figure drawn, the table printed."""

import contextlib
from pathlib import Path

from retain.launchers.cli.views import print_json, print_results
from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.figures.overview import draw_losses
from retain.results.figures.theory import draw_theory
from retain.results.store.loss_table import csv_text, save_rows, study_folder, trial_rows
from retain.results.store.study_files import POINTS_STUDY
from retain.results.tensorboard.views import link_runs, view_folder
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import write_text
from retain.sweeps.schema.linear import LinearStudy


def show_results(opened: OpenedStudy, as_json: bool, csv: Path | None, view: bool = False) -> None:
    """Print one row per trial, from whatever is there. Raises StudyError where `csv` cannot be written.

    view: make the study's TensorBoard folder, if it is not there yet. One that is there is brought up to date.
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
    # Whoever may only read a store sees its results all the same.
    with contextlib.suppress(PermissionError):
        if any(state.state == "done" for state in states.values()):
            made = [save_rows(root, tree.study, rows), *draw(root, tree.study, rows)]
            # Of ten thousand runs it takes as long as the rest of this command.
            if view or view_folder(root, tree.study).is_dir():
                made.append(link_runs(tree, opened.store, states=states))
    if as_json:
        print_json({"study": tree.study, "trials": rows})
    else:
        print_results(opened, rows, made)
        if (points := study_folder(root, tree.study) / POINTS_STUDY).exists():
            print(f"what a search has tried besides: retain results {points}")
