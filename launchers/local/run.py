"""`retain run`: trains what a study lacks on this machine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from retain.datamodules.corpora.prepare import Report, ignore_progress
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import Watch, train
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.results.store.garbage import check_starts
from retain.results.store.runs import SPEC, Store
from retain.results.store.state import State
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.tree import Tree

Reporting = Callable[[], AbstractContextManager[Report]]
"""Opens a display of the preparation of data."""
Watching = Callable[[Tree, Store], AbstractContextManager[Watch]]
"""Opens a display of the states of the stages of a tree in a store."""


@dataclass(frozen=True)
class StudyRun:
    """A study after `run_study`."""

    opened: OpenedStudy
    states: Mapping[str, State]
    """The last state of each stage."""


def run_study(
    name: str,
    overrides: Sequence[str],
    store: Path,
    reporting: Reporting | None = None,
    watching: Watching | None = None,
) -> StudyRun:
    """Prepare the data of a study, and train what its store lacks.

    reporting, watching: display the preparation of data, and the training. Raises StudyError, MissingResourceError, and
    KeyboardInterrupt once all processes have saved a checkpoint and ended.
    """
    study = read_study(name, overrides).study
    if study.execution.accelerator == "gpu":
        local_slots(study.execution, study.stages)  # raises before any data is prepared
    with reporting() if reporting else nullcontext(ignore_progress) as report:
        opened = prepare_study(name, overrides, store, report)
    return StudyRun(opened, train_missing(opened, opened.tree, watching))


def train_missing(opened: OpenedStudy, tree: Tree, watching: Watching | None = None) -> Mapping[str, State]:
    """Train the stages of a tree that the store lacks; returns the last state of each. Raises as `run_study` does."""
    states = opened.store.states(tree.stages)
    if all(state.state == "done" and (opened.store.root / key / SPEC).exists() for key, state in states.items()):
        return states
    check_starts(opened.store, tree.stages, states)
    slots = local_slots(opened.file.study.execution, opened.file.study.stages)
    register(tree, opened.file, opened.facts, opened.store)
    with watching(tree, opened.store) if watching else nullcontext(lambda states: None) as watch:
        return train(tree, opened.store, slots, watch)
