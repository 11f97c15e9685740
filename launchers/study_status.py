"""`retain status`: the stages and the searches of a study or a store, with what SLURM says about them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retain.launchers.jobs.status import Orphan, ask_slurm
from retain.launchers.kinds import SEARCH
from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.looks import has_look_left
from retain.launchers.planning.opened_study import OpenedStudy, open_study
from retain.results.store.runs import SPEC, Store, existing_store
from retain.results.store.state import DAMAGED, STATES
from retain.results.store.status import (
    RunStatus,
    StageCost,
    StatusReader,
    is_to_come,
    run_status,
    stage_costs,
    study_seconds_left,
)
from retain.results.store.study_files import looks_of, preparation_keys, search_run
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.base.yaml_text import is_written, written
from retain.sweeps.tree.tree import Trial


@dataclass(frozen=True)
class SearchStatus:
    """What `retain status` shows of a search."""

    study: str
    """The name of the study."""
    launcher: str
    """ray, slurm or slurm-ray."""
    job_id: str | None
    """The SLURM job of the search; None without one."""
    state: str
    """The state of the run of the search."""
    reason: str | None
    """Why it failed or was cancelled, or what it waits for."""
    points: dict[str, int]
    """The number of points in each state."""
    log: str
    """The path of its log, which a search on this machine does not have."""

    @property
    def sentence(self) -> str:
        """`search of tiny: job 12 (slurm) is running; points: 3 done, 2 running; log: ...`."""
        why = f" ({self.reason})" if self.reason else ""
        points = ", ".join(f"{count} {state}" for state, count in self.points.items()) or "none yet"
        where = f"job {self.job_id} ({self.launcher})" if self.job_id else self.launcher
        # A search on this machine prints in the terminal where it is started.
        log = "" if self.launcher == "ray" else f"; log: {self.log}"
        return f"search of {self.study}: {where} is {self.state}{why}; points: {points}{log}"


@dataclass(frozen=True)
class Status:
    """What `retain status --json` prints."""

    study: str | None
    """None for the status of a store."""
    runs: list[RunStatus]
    """One row for each run."""
    orphans: list[Orphan]
    """Jobs whose run has been deleted."""
    searches: list[SearchStatus]
    """The searches among the runs."""
    unanswered: str | None
    """If SLURM was asked and did not answer: its message, and what the rows show instead."""
    provisional: bool = False
    """True while the data of the study is not prepared: its keys will change, and no stage counts as trained."""

    seconds_left: float | None = None
    """The seconds that all runs still need at the present speed; None while no run reports a speed."""

    cost: list[StageCost] = field(default_factory=list)
    """What each stage of these runs took so far. A search is a stage too: its driver's time is that of its one process."""

    has_look_left: bool = False
    """Whether a look at the study's results is to come (`run --until decided`), which may add seeds."""

    @property
    def is_idle(self) -> bool:
        """Whether it is known that nothing is queued or running."""
        return self.unanswered is None and not {"running", "queued"} & {row.state for row in self.runs}

    @property
    def is_over(self) -> bool:
        """Whether it is known that no run will begin or continue, unless it is retried.

        Where all runs have ended, the store alone says so, without an answer of SLURM.
        """
        ended = not self.has_look_left and not any(map(is_to_come, self.runs))
        return ended and (self.unanswered is None or bool(self.runs))


def status_reader(
    study: str | None,
    overrides: Sequence[str],
    store: Path,
    states: Sequence[str] = (),
    stages: Sequence[str] = (),
    where: Sequence[str] = (),
) -> Callable[[], Status]:
    """A function that reads the present status of a study, or of a whole store.

    The study is expanded again only while its data is not prepared, as its keys change then, and once looks have added seeds to
    it. states, stages, where: filters, as in `filtered`.

    Raises StudyError, and MissingResourceError if no study is named and the store does not exist.
    """
    if study is None:
        whole = existing_store(store)
        of_store = StatusReader(whole).of_store
        return lambda: filtered(_read(None, whole, of_store()), states, stages, where)
    opened = open_study(study, overrides, store)
    tree, name = with_evaluations(opened), opened.tree.study
    looks, reader, first = looks_of(store, name), StatusReader(opened.store), True

    def read() -> Status:
        nonlocal opened, tree, looks, first
        looks, known = looks_of(store, name), looks
        was_provisional = tree.provisional and not first
        is_prepared = was_provisional and not open_study(study, overrides, store, remember=False).tree.provisional
        if is_prepared or looks != known:
            opened = open_study(study, overrides, store)
            tree = with_evaluations(opened)
        first = False
        rows = [*_preparation(opened, name), *reader.of_study(tree), *_search_row(opened.store, name)]
        found = _read(name, opened.store, rows, tree.provisional)
        status = replace(found, has_look_left=has_look_left(opened.file, looks))
        return filtered(status, states, stages, where, tree.trials)

    return read


def filtered(
    status: Status,
    states: Sequence[str],
    stages: Sequence[str],
    where: Sequence[str],
    trials: Sequence[Trial] = (),
) -> Status:
    """The status of only those runs that have one of these states, one of these stages and these values of axes.

    where: AXIS=VALUE; of several values of one axis, a run needs one. trials: those of the study, if its named cases can be
    filtered too: a run has the cases of all trials that it is part of. Raises StudyError for an unknown state, stage or axis,
    and for a value that no run has.
    """
    rows = status.runs
    if not (states or stages or where):
        return status
    for name, wanted, known in (("state", states, (*STATES, DAMAGED)), ("stage", stages, {row.stage for row in rows})):
        if unknown := [one for one in wanted if one not in known]:
            raise StudyError(f"--{name} {unknown[0]}: unknown {name}; the {name}s are {', '.join(sorted(known))}")
    matching: dict[str, set[str]] = {}
    for condition in where:
        axis, separator, text = condition.partition("=")
        values = _values(axis, rows, trials)
        if not separator or not values:
            every = [*(row.axes for row in rows), *(trial.axes for trial in trials)]
            axes = ", ".join(dict.fromkeys(name for own in every for name in own)) or "none"
            raise StudyError(f"--where {condition}: a filter is AXIS=VALUE, and the axes are {axes}")
        found = {key for key, own in values.items() if any(is_written(value, text) for value in own)}
        if not found:
            written_values = ", ".join(dict.fromkeys(written(value) for own in values.values() for value in own))
            raise StudyError(f"--where {condition}: no run has this value; the values are {written_values}")
        matching[axis] = matching.get(axis, set()) | found
    chosen = [
        row
        for row in rows
        if (not states or row.state in states)
        and (not stages or row.stage in stages)
        and all(row.key in found for found in matching.values())
    ]
    return replace(status, runs=chosen, cost=_costs(chosen))


def _values(axis: str, rows: Sequence[RunStatus], trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """The values of an axis, by the key of the run. If no run has the axis, each run has the values of all its trials.

    An evaluation belongs to the trials of the run that it measures.
    """
    if own := {row.key: [row.axes[axis]] for row in rows if axis in row.axes}:
        return own
    found: dict[str, list[Any]] = {}
    for trial in trials:
        for key in trial.path if axis in trial.axes else ():
            if trial.axes[axis] not in (values := found.setdefault(key, [])):
                values.append(trial.axes[axis])
    return found | {row.key: found[row.parent] for row in rows if row.key not in found and row.parent in found}


def _read(study: str | None, store: Store, rows: list[RunStatus], provisional: bool = False) -> Status:
    queue = ask_slurm(rows, store)
    searches = [_search_status(store, row) for row in queue.runs if row.stage == SEARCH.name]
    left = study_seconds_left(queue.runs)
    return Status(study, queue.runs, queue.orphans, searches, queue.unanswered, provisional, left, _costs(queue.runs))


def _costs(rows: Sequence[RunStatus]) -> list[StageCost]:
    """What each stage took. A search takes no device itself, and an interrupted one repeats nothing."""
    return stage_costs([row for row in rows if row.stage != SEARCH.name])


def _preparation(opened: OpenedStudy, study: str) -> list[RunStatus]:
    """The rows of the runs that prepare the data of a study, until it is prepared."""
    if not opened.tree.provisional:
        return []
    return [run_status(opened.store.run(key)) for key in preparation_keys(opened.store, study)]


def _search_row(store: Store, study: str) -> list[RunStatus]:
    """The row of the search of a study, if it was ever searched."""
    run = search_run(store, study)
    return [run_status(run)] if os.path.lexists(run.folder / SPEC) else []


def _search_status(store: Store, row: RunStatus) -> SearchStatus:
    from retain.launchers.search.history import point_counts  # imports numpy, which few stores need

    run = store.run(row.key)
    spec = run.spec()
    launcher, study = spec["execution"]["request"]["launcher"], spec["study"]
    try:
        points, reason = point_counts(store, study), row.reason
    except DamageError as error:
        points, reason = {}, str(error)
    return SearchStatus(study, launcher, row.job_id, row.state, reason, points, str(run.log))
