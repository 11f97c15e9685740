"""`retain board`: TensorBoard over a study's runs, each under a name with the values of its axes."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn

from retain.results.analysis.axes import axis_names, axis_values
from retain.results.store.curves import CURVES
from retain.results.store.index.states import shown_states
from retain.results.store.runs import Run, Store
from retain.results.store.state import StateSummary
from retain.results.store.study_files import folder_name, search_run, study_folder
from retain.results.tensorboard.events import (
    digest_of,
    run_events,
    run_events_head,
    run_events_name,
    stage_metric,
    study_events,
    study_hyperparameters,
)
from retain.results.tensorboard.run_events import derive_events, needs_events
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError
from retain.sweeps.base.files import remove, write_bytes
from retain.sweeps.base.processes.shared_work import Result, Thing, shared_out
from retain.sweeps.base.yaml_text import is_written, written
from retain.sweeps.schema.section import GROUNDWORK
from retain.sweeps.tree.heldout_splits import role_of
from retain.sweeps.tree.tree import Stage, Tree, Trial, axes_label

VIEW = "tensorboard"
SEARCH = "search-curves"
"""The name under which TensorBoard shows the curves of a search."""
WRITERS, WORTH_A_PROCESS = 16, 250
"""The number of runs that a process links at a time, and of those that take longer to link than a process to start."""


def view_folder(root: Path, study: str) -> Path:
    """The folder in which `link_runs` puts all runs of a study for TensorBoard."""
    return study_folder(root, study) / VIEW


def link_runs(
    tree: Tree,
    store: Store,
    where: Sequence[str] = (),
    states: Mapping[str, StateSummary] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Make or update a folder for TensorBoard, and return it: every run that has begun, the study's charts and figures.

    Each run is named after its stage and axes; runs that left the study are removed from the folder. The curves of the
    study's search are linked too, if there are any. where: filters as in `chosen_trials`; each combination of filters has its
    own folder, with the runs on the paths of the chosen trials. states: the states of all stages, if they have been read
    already. overrides: those of the tree, if it is to have a folder of its own. Raises StudyError.
    """
    trials, name = chosen_trials(tree, where)
    home = study_folder(store.root, tree.study, overrides)
    folder = home / "tensorboard-where" / name if where else home / VIEW
    folder.mkdir(parents=True, exist_ok=True)
    hyperparameters = study_hyperparameters(tree.study, [trial.axes for trial in trials], _stage_metrics(tree))
    leaves = {trial.leaf: trial.axes for trial in reversed(trials)}
    digest, head = digest_of([hyperparameters]), run_events_head(hyperparameters)
    states = shown_states(store, tree.stages) if states is None else states
    # What all runs of a filtered view share is not repeated in each name, which TensorBoard breaks over lines.
    rows = [{"axes": trial.axes} for trial in trials]
    held = [axis for axis in axis_names(rows) if len(axis_values(rows, axis)) == 1] if where else []
    to_store = os.path.relpath(store.root, folder)

    def show(key: str) -> str | None:
        """Show a run that has begun; returns its name."""
        stage, state = tree.stages[key], states[key].state
        if not (files := _event_files(store, store.run(key), state)):
            return None
        name = _name(stage, held)
        if state == "done":
            own = leaves.get(key, stage.axes)
            links = {file: f"../{to_store}/{key}/{file}" for file in files}
            _show_done(f"{folder}/{name}", links, run_events_name(digest, own), partial(run_events, head, own))
        else:
            _link(f"{folder}/{name}", f"{to_store}/{key}")
        return name

    keys = list(dict.fromkeys(key for trial in trials for key in trial.path))
    wanted = {name for names in shared_out(partial(_each, show), keys, WORTH_A_PROCESS) for name in names}
    search = search_run(store, tree.study).folder
    if (search / CURVES).exists():
        _link(f"{folder}/{SEARCH}", os.path.relpath(search, folder))
    for name in os.listdir(folder):
        if name not in wanted and name != SEARCH and not name.startswith(("events.", ".")):
            with contextlib.suppress(OSError):  # another process may remove it too
                remove(folder / name)
    figures = sorted([*home.glob("*.png"), *home.glob("figures/*.png")])
    _put_events(
        folder, *study_events(hyperparameters, figures, [name for name in tree.chain if name not in GROUNDWORK])
    )
    return folder


def update_event_files(store: Store) -> None:
    """Derive the event files of done runs that are missing or from before losses were named by stage, in a whole store."""

    def update(run: Run) -> None:
        with contextlib.suppress(DamageError):  # damage is for other verbs to report
            _event_files(store, run, run.state().state)

    shared_out(partial(_each, update), list(store.runs()), WORTH_A_PROCESS)


def chosen_trials(tree: Tree, where: Sequence[str]) -> tuple[list[Trial], str]:
    """The trials that match every filter `axis=value`, and a name for the filters; all trials if there is no filter.

    A value is written as the axis prints it, or as another form of the same number. Raises StudyError for an unknown axis,
    and if no trial is left.
    """
    chosen, names = list(tree.trials), []
    rows = [{"axes": trial.axes} for trial in chosen]
    for condition in where:
        axis, separator, text = condition.partition("=")
        values = axis_values(rows, axis)
        if not separator or not values:
            known = ", ".join(axis_names(rows)) or "none"
            raise StudyError(f"--where {condition}: a filter is AXIS=VALUE, and the axes of {tree.study} are {known}")
        if not (matching := [value for value in values if is_written(value, text)]):
            raise StudyError(
                f"--where {condition}: no trial has this value; the values are {', '.join(map(written, values))}"
            )
        chosen = [trial for trial in chosen if axis in trial.axes and trial.axes[axis] in matching]
        names.append(f"{axis}={matching[0]}")
    if not chosen:
        raise StudyError(f"--where {' --where '.join(where)}: no trial has all these values; leave one out")
    return chosen, folder_name(",".join(dict.fromkeys(names)))


def serve(folder: Path, port: int) -> NoReturn:
    """Replace this process by TensorBoard on localhost, so that a signal to this process stops TensorBoard.

    Raises MissingResourceError if TensorBoard or the store is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingResourceError("tensorboard is not installed; install Retain from its lock file")
    if not folder.is_dir():
        raise MissingResourceError(
            f"{folder}: store not found; train something first, or name another store with --store"
        )
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "localhost"]
    os.execv(sys.executable, [*command, "--port", str(port)])


def _stage_metrics(tree: Tree) -> list[str]:
    """The losses of each kind of stage on the corpora of the stages up to it, and of a pretraining on D_post."""
    kinds = [name for name in dict.fromkeys(stage.stage for stage in tree.stages.values()) if name not in GROUNDWORK]
    roles = {kind: [role_of(one) for one in kinds[: max(number, 2)]] for number, kind in enumerate(kinds, start=1)}
    return [stage_metric(kind, role) for kind in kinds for role in roles[kind]]


def _name(stage: Stage, held: Sequence[str]) -> str:
    axes = {name: value for name, value in stage.axes.items() if name not in held}
    return f"{folder_name(f'{stage.stage} {axes_label(axes)}')} {stage.key[:6]}"


def _each(do: Callable[[Thing], Result | None], things: Sequence[Thing]) -> list[Result]:
    """Do something with each of these, and return what it returns but for None."""
    # Each request to a network file system takes long, but many are answered at a time.
    with ThreadPoolExecutor(WRITERS) as writers:
        parts = writers.map(lambda first: [do(one) for one in things[first::WRITERS]], range(WRITERS))
        return [result for part in parts for result in part if result is not None]


def _link(place: str, folder: str) -> None:
    """Link to the whole folder of a run that may still be written, so that TensorBoard sees later files."""
    with contextlib.suppress(OSError):  # the place is empty, or holds something else than a link
        if os.readlink(place) == folder:
            return
    with contextlib.suppress(OSError):  # another launcher was faster
        remove(Path(place))
    with contextlib.suppress(FileExistsError):
        os.symlink(folder, place)


def _event_files(store: Store, run: Run, state: str) -> list[str]:
    """The names of a run's event files; derives them now if the run has only curves, or is done and has files from before its
    losses were named by stage."""
    try:
        names = os.listdir(run.folder)
    except FileNotFoundError:
        return []
    if CURVES in names and (needs_events(names) if state == "done" else not any(map(_is_event_file, names))):
        # A store that may only be read keeps the files that it has; damage is for other verbs to report.
        with contextlib.suppress(OSError, DamageError):
            derive_events(store, run)
        names = os.listdir(run.folder)
    return [name for name in names if _is_event_file(name)]


def _is_event_file(name: str) -> bool:
    return name.startswith("events.")


def _show_done(place: str, links: Mapping[str, str], name: str, content: Callable[[], bytes]) -> None:
    """Show a run that is done: links to its event files, and an event file of the view with its axes in this study."""
    own = f"{place}/{name}"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if set(os.listdir(place)) == {*links, name} and os.path.getsize(own):
            return
    if os.path.islink(place):
        Path(place).unlink(missing_ok=True)
    try:
        os.mkdir(place)
        new = True
    except FileExistsError:
        new = False
    if os.path.islink(place):  # another launcher was faster: writing here would write into the run itself
        return
    for file, target in links.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"{place}/{file}")
    if new or not os.path.exists(own) or not os.path.getsize(own):
        write_bytes(Path(own), content(), sync=False)
    if not new:
        _drop_old(Path(place), name)


def _drop_old(folder: Path, kept: str) -> None:
    """Remove links to event files that are gone, and all event files of the view whose names do not end with `kept`."""
    for path in folder.glob("events.*"):
        if not path.name.endswith(kept) and not (path.is_symlink() and path.exists()):
            path.unlink(missing_ok=True)


def _put_events(folder: Path, name: str, content: bytes) -> None:
    """Replace the study's own event file in a folder, unless that file already shows the same."""
    digest = name.rpartition(".")[2]
    if not any(folder.glob(f"events.*.{digest}")):
        write_bytes(folder / name, content)
    _drop_old(folder, digest)
