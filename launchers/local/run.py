"""`retain run`: trains what a study lacks on this machine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from retain.datamodules.corpora.reading.report import Report, ignore_progress
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import Watch, train
from retain.launchers.local.preparation import prepare_here
from retain.launchers.planning.evaluations import ready_evaluations
from retain.launchers.planning.judged import begin_looks, make_look, planned_looks
from retain.launchers.planning.key_report import tell_edit
from retain.launchers.planning.looks import Schedule, seeds_override
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register, register_evaluations
from retain.launchers.stage.on_end import begin_launch, tell_ended, tell_failed
from retain.results.store.garbage import check_starts
from retain.results.store.runs import SPEC, Store
from retain.results.store.state import State
from retain.results.store.study_files import looks_ended, seeds_of_looks
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
    measured: Tree | None = None
    """The evaluations that were missing, below their stages; None if none was."""
    evaluations: Mapping[str, State] = field(default_factory=dict)
    """The last states of the evaluations that were missing, and of their stages."""


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
    opened = _prepared(name, overrides, store, reporting)
    tell_edit(opened, overrides)
    states = train_missing(opened, opened.tree, watching, on_end=True)
    measured = with_measures(opened, states, watching)
    _tell_end(opened, states)
    return measured


def evaluate_study(
    name: str,
    overrides: Sequence[str],
    store: Path,
    reporting: Reporting | None = None,
    watching: Watching | None = None,
) -> StudyRun:
    """Measure what done stages of a study lack, blanks of its matrix included; train nothing. Raises as `run_study` does."""
    opened = _prepared(name, overrides, store, reporting)
    return with_measures(opened, opened.store.states(opened.tree.stages), watching, blanks=True)


def run_until_decided(
    name: str,
    overrides: Sequence[str],
    store: Path,
    most: int | None = None,
    block: int | None = None,
    reporting: Reporting | None = None,
    watching: Watching | None = None,
) -> StudyRun:
    """Train a study in blocks of seeds, with a look at its verdicts after each, until all are decided or `most` are trained.

    The looks are written into the store before anything is trained (`planning.looks`). An interrupted call continues at the
    same look. A look takes place once every trial of its seeds is finished: a failed stage ends the call before it.

    most, block: the most seeds, and how many are added at a time; None: as recorded. Raises as `run_study` does.
    """
    planned = planned_looks(name, overrides, store, most, block)
    if isinstance(planned, Schedule):
        # A study whose data is missing may still be changed; one whose looks are fixed may not.
        _prepared(name, [*overrides, seeds_override(planned.seeds[: planned.counts[0]])], store, reporting)
        looks = begin_looks(name, overrides, store, planned)
    else:
        looks = planned
    while True:
        opened = _prepared(name, [*overrides, seeds_override(seeds_of_looks(looks))], store, reporting)
        states = train_missing(opened, opened.tree, watching, on_end=True)
        if looks_ended(looks) or any(state.state != "done" for state in states.values()):
            _tell_end(opened, states)
            return with_measures(opened, states, watching)
        ran = with_measures(opened, states, watching)  # a look judges averages too
        looks = make_look(opened, looks)
        if looks_ended(looks):
            _tell_end(opened, states)
            return ran


def _prepared(name: str, overrides: Sequence[str], store: Path, reporting: Reporting | None) -> OpenedStudy:
    """Prepare the data of a study, unless this machine lacks the GPUs that it asks for. Raises as `run_study` does."""
    study = read_study(name, overrides).study
    if study.execution.accelerator == "gpu":
        local_slots(study.execution, study.stages)  # raises before any data is prepared
    with reporting() if reporting else nullcontext(ignore_progress) as report:
        return prepare_study(name, overrides, store, report, prepare_here)


def _tell_end(opened: OpenedStudy, states: Mapping[str, State]) -> None:
    """Run the study's `execution.on_end`, unless no launch has trained anything since it was last run."""
    tell_ended(opened.store, states.keys(), {})


def train_missing(
    opened: OpenedStudy, tree: Tree, watching: Watching | None = None, on_end: bool = False
) -> Mapping[str, State]:
    """Train the stages of a tree that the store lacks; returns the last state of each. Raises as `run_study` does.

    on_end: whether `execution.on_end` is run for branches that fail; the caller runs it once the study has ended.
    """
    states = opened.store.states(tree.stages)
    if all(state.state == "done" and (opened.store.root / key / SPEC).exists() for key, state in states.items()):
        return states
    check_starts(opened.store, tree.stages, states)
    slots = local_slots(opened.file.study.execution, opened.file.study.stages)
    register(tree, opened.file, opened.facts, opened.store)
    if on_end:
        begin_launch(opened.store, tree, opened.file.study.execution.on_end)
    failed = partial(tell_failed, opened.store) if on_end else None
    with watching(tree, opened.store) if watching else nullcontext(lambda states: None) as watch:
        return train(tree, opened.store, slots, watch, failed=failed)


def with_measures(
    opened: OpenedStudy, states: Mapping[str, State], watching: Watching | None, blanks: bool = False
) -> StudyRun:
    """Measure what `evaluate` asks for below the stages that are done, and with `blanks` what the matrix lacks.

    states: the last state of each stage. Raises as `run_study` does.
    """
    missing = ready_evaluations(opened, blanks)
    if not missing:
        return StudyRun(opened, states)
    tree, store, study = opened.tree, opened.store, opened.file.study
    check_starts(store, tree.stages | missing, {**states, **store.states(missing)})
    # The stages are done, whatever became of those above them.
    above = {need: replace(tree.stages[need], parent=None, also=()) for one in missing.values() for need in one.needs}
    part = replace(tree, stages=above | missing, trials=[])
    register_evaluations(missing, tree, opened.file, opened.facts, store)
    slots = local_slots(study.execution, study.stages)
    with watching(part, store) if watching else nullcontext(lambda states: None) as watch:
        return StudyRun(opened, states, part, train(part, store, slots, watch))
