"""The trials of a study for TensorBoard: one run for each trial, with its axes as hyperparameters and its losses as metrics."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retain.results.store.loss_table import loss_at, loss_columns, named_losses, trial_rows
from retain.results.store.runs import Store
from retain.results.store.study_files import folder_name, study_folder
from retain.results.tensorboard.events import (
    digest_of,
    run_events,
    run_events_head,
    run_events_name,
    study_hyperparameters,
)
from retain.results.tensorboard.views import chosen_trials
from retain.sweeps.base.files import remove, write_bytes
from retain.sweeps.tree.tree import Tree, Trial, axes_label

VIEW = "tensorboard-trials"


def write_trials(tree: Tree, store: Store, where: Sequence[str] = (), overrides: Sequence[str] = ()) -> Path:
    """Make a folder for TensorBoard with a run for each trial that has a loss, and return it.

    The metrics are those of the paper's four losses that the chain has, then those of every stage on every corpus as
    STAGE/CORPUS.

    where: filters as in `views.chosen_trials`; each combination of filters has its own folder. overrides: those of the tree, if
    it is to have a folder of its own. Raises StudyError, DamageError.
    """
    trials, name = chosen_trials(tree, where)
    home = study_folder(store.root, tree.study, overrides)
    folder = home / f"{VIEW}-where" / name if where else home / VIEW
    rows = trial_rows(replace(tree, trials=trials), store)
    metrics = [*named_losses(rows), *loss_columns(rows)]
    hyperparameters = study_hyperparameters(tree.study, [trial.axes for trial in trials], metrics)
    digest, head = digest_of([hyperparameters]), run_events_head(hyperparameters)
    if folder.is_dir():
        remove(folder)
    for row, trial in zip(rows, trials, strict=True):
        losses = {metric: loss for metric in metrics if (loss := loss_at(row, metric)) is not None}
        if losses:
            place = folder / _name(trial)
            place.mkdir(parents=True)
            write_bytes(place / run_events_name(digest, trial.axes), run_events(head, trial.axes, losses), sync=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _name(trial: Trial) -> str:
    return f"{folder_name(axes_label(trial.axes))} {trial.leaf[:6]}"
