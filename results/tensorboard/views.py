"""`retain board`: TensorBoard over a study's runs, each under a name that says its axes."""

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from retain.results.store.curves import FILE
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.results.store.study_files import search_run, study_folder
from retain.results.tensorboard.events import (
    digest_of,
    run_events,
    run_events_head,
    run_events_name,
    study_events,
    study_hyperparameters,
)
from retain.results.tensorboard.run_events import derive_events
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.files import write_bytes
from retain.sweeps.base.units import parse_size
from retain.sweeps.tree.tree import Stage, Tree, Trial, axes_label

SEARCH = "search-curves"
"""The name of a search's own curves."""
WRITERS = 16
"""Runs that are linked at the same time."""


def view_folder(root: Path, study: str) -> Path:
    """Where TensorBoard finds all runs of a study, once `link_runs` has been there."""
    return study_folder(root, study) / "tensorboard"


def link_runs(tree: Tree, store: Store, where: Sequence[str] = (), states: Mapping[str, State] | None = None) -> Path:
    """A folder for TensorBoard: every run that has begun under its stage and axes, the study's charts and figures.

    Where the study, or the one that these are the searched points of, was searched, the search's own curves are there too.
    where: filters as in `chosen_trials`; each combination has a folder of its own, with the runs on the paths of the
    trials chosen. What left the study is removed from it. states: of all stages, where they have been read already. Raises
    StudyError.
    """
    trials, name = chosen_trials(tree, where)
    home = study_folder(store.root, tree.study)
    folder = home / "tensorboard-where" / name if where else view_folder(store.root, tree.study)
    folder.mkdir(parents=True, exist_ok=True)
    hyperparameters = study_hyperparameters(tree.study, [trial.axes for trial in trials])
    leaves = {trial.finetune: trial.axes for trial in reversed(trials)}
    digest, head = digest_of([hyperparameters]), run_events_head(hyperparameters)
    states = store.states(tree.stages) if states is None else states
    wanted = {
        _name(tree.stages[key]): (key, files)
        for key in dict.fromkeys(key for trial in trials for key in trial.path)
        if (files := _event_files(store.run(key)))
    }
    to_store = os.path.relpath(store.root, folder)
    search = search_run(store, tree.study).folder
    if (search / FILE).exists():
        _link(f"{folder}/{SEARCH}", os.path.relpath(search, folder))
    for name in os.listdir(folder):
        if name not in wanted and name != SEARCH and not name.startswith(("events.", ".")):
            _remove(folder / name)

    def show(names: Sequence[str]) -> None:
        for shown in names:
            key, files = wanted[shown]
            if states[key].state == "done":
                own = leaves.get(key, tree.stages[key].axes)
                links = {file: f"../{to_store}/{key}/{file}" for file in files}
                _show_done(f"{folder}/{shown}", links, run_events_name(digest, own), partial(run_events, head, own))
            else:
                _link(f"{folder}/{shown}", f"{to_store}/{key}")

    # A file system of many nodes answers many questions at a time, each slowly.
    names = list(wanted)
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(show, [names[first::WRITERS] for first in range(WRITERS)]))
    figures = sorted([*home.glob("*.png"), *home.glob("figures/*.png")])
    name, content = study_events(hyperparameters, figures)
    _put_events(folder, name, lambda: content)
    return folder


def chosen_trials(tree: Tree, where: Sequence[str]) -> tuple[list[Trial], str]:
    """The trials that all filters `axis=value` let through, and a name for them; all trials without a filter.

    A value is given as the axis prints it, or another way to write the same number. Raises StudyError where there is
    no such axis, and where no trial is left.
    """
    chosen, names = list(tree.trials), []
    for condition in where:
        axis, separator, text = condition.partition("=")
        values = _values(tree.trials, axis)
        if not separator or not values:
            axes = dict.fromkeys(name for trial in tree.trials for name in trial.axes)
            raise StudyError(
                f"--where {condition}: a filter is AXIS=VALUE, and the axes of {tree.study} are {', '.join(axes) or 'none'}"
            )
        if not (matching := [value for value in values if _is_written(value, text)]):
            raise StudyError(f"--where {condition}: no trial has it; the values are {', '.join(map(str, values))}")
        chosen = [trial for trial in chosen if axis in trial.axes and trial.axes[axis] in matching]
        names.append(f"{axis}={matching[0]}")
    if not chosen:
        raise StudyError(f"--where {' --where '.join(where)}: no trial has all of them; leave one out")
    return chosen, ",".join(dict.fromkeys(names)).replace("/", "_")[:200]


def serve(folder: Path, port: int) -> NoReturn:
    """Become TensorBoard on localhost, so that whatever stops this process stops it. Raises MissingResourceError."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingResourceError("tensorboard is not installed; install Retain from its lock file")
    if not folder.is_dir():
        raise MissingResourceError(f"{folder}: no such store; train something first, or name it with --store")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "localhost"]
    os.execv(sys.executable, [*command, "--port", str(port)])


def _name(stage: Stage) -> str:
    return f"{stage.stage} {axes_label(stage.axes)}".replace("/", "_")[:200] + f" {stage.key[:6]}"


def _values(trials: Sequence[Trial], axis: str) -> list[Any]:
    """The different values of an axis, in the order of the trials."""
    found: list[Any] = []
    for trial in trials:
        if axis in trial.axes and trial.axes[axis] not in found:
            found.append(trial.axes[axis])
    return found


def _is_written(value: Any, text: str) -> bool:
    """Whether a text means a value of an axis: 5e-5 and 0.00005 are 5e-05, 300M is 300000000."""
    if text == str(value):
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text.lower() == str(value).lower()
    for parse in (float, parse_size):
        with contextlib.suppress(ValueError):
            return bool(parse(text) == value)
    return False


def _link(place: str, folder: str) -> None:
    """A run that may still be written: its whole folder, so that what comes is seen."""
    with contextlib.suppress(OSError):  # none is there, or something that is no link
        if os.readlink(place) == folder:
            return
    _remove(Path(place))
    with contextlib.suppress(FileExistsError):  # another launcher was faster
        os.symlink(folder, place)


def _event_files(run: Run) -> list[str]:
    """The names of a run's event files; those of a run that has only curves are written now."""
    try:
        names = os.listdir(run.folder)
    except FileNotFoundError:
        return []
    if FILE in names and not any(name.startswith("events.") for name in names):
        derive_events(run.folder)
        names = os.listdir(run.folder)
    return [name for name in names if name.startswith("events.")]


def _show_done(place: str, links: Mapping[str, str], name: str, content: Callable[[], bytes]) -> None:
    """A run that is done: links to its event files beside one of ours, which says its axes in this study."""
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
    if os.path.islink(place):  # another launcher was faster; nothing is to be written into the run itself
        return
    for file, target in links.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"{place}/{file}")
    if new or not os.path.exists(own) or not os.path.getsize(own):
        write_bytes(Path(own), content(), sync=False)
    if not new:
        _drop_old(place, name)


def _drop_old(place: str, name: str) -> None:
    """Remove links to event files that are gone, and what says other axes than our file `name`."""
    for path in Path(place).iterdir():
        ours = not path.is_symlink() and path.name.startswith("events.")
        if path.name != name and (ours or not path.exists()):
            path.unlink(missing_ok=True)


def _put_events(folder: Path, name: str, content: Callable[[], bytes]) -> None:
    """One event file of ours in a folder; it stays where it shows the same already."""
    ours = [path for path in folder.glob("events.*") if not path.is_symlink()]
    digest = name.rpartition(".")[2]
    if not any(path.name.endswith(f".{digest}") for path in ours):
        write_bytes(folder / name, content())
    for path in ours:
        if not path.name.endswith(f".{digest}"):
            path.unlink(missing_ok=True)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
