"""`retain status`: the stages and the searches of a study or a store, with what SLURM says about them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.launchers.jobs.status import Orphan, ask_slurm
from retain.launchers.kinds import SEARCH
from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.history import point_counts
from retain.results.store.runs import SPEC, Store, existing_store
from retain.results.store.status import RunStatus, run_status, store_status, study_status
from retain.results.store.study_files import search_run
from retain.sweeps.base.errors import DamageError


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
    """The path of its log."""

    @property
    def sentence(self) -> str:
        """`search of tiny: job 12 (slurm) is running; points: 3 done, 2 running; log: ...`."""
        why = f" ({self.reason})" if self.reason else ""
        points = ", ".join(f"{count} {state}" for state, count in self.points.items()) or "none yet"
        where = f"job {self.job_id} ({self.launcher})" if self.job_id else self.launcher
        return f"search of {self.study}: {where} is {self.state}{why}; points: {points}; log: {self.log}"


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

    @property
    def is_over(self) -> bool:
        """Whether it is known that nothing is queued or running."""
        return self.unanswered is None and not {"running", "queued"} & {row.state for row in self.runs}


def status_reader(study: str | None, overrides: Sequence[str], store: Path) -> Callable[[], Status]:
    """A function that reads the present status of a study, or of a whole store; the study is expanded only once.

    Raises StudyError, also if the store does not exist and no study is named.
    """
    if study is None:
        whole = existing_store(store)
        return lambda: _read(None, whole, store_status(whole))
    opened = open_study(study, overrides, store)
    name = opened.tree.study
    provisional = opened.tree.provisional
    return lambda: _read(
        name, opened.store, [*study_status(opened.tree, opened.store), *_search_row(opened.store, name)], provisional
    )


def _read(study: str | None, store: Store, rows: list[RunStatus], provisional: bool = False) -> Status:
    queue = ask_slurm(rows, store)
    searches = [_search_status(store, row) for row in queue.runs if row.stage == SEARCH.name]
    return Status(study, queue.runs, queue.orphans, searches, queue.unanswered, provisional)


def _search_row(store: Store, study: str) -> list[RunStatus]:
    """The row of the search of a study, if it was ever searched."""
    run = search_run(store, study)
    return [run_status(run)] if os.path.lexists(run.folder / SPEC) else []


def _search_status(store: Store, row: RunStatus) -> SearchStatus:
    run = store.run(row.key)
    spec = run.spec()
    launcher, study = spec["execution"]["request"]["launcher"], spec["study"]
    try:
        points, reason = point_counts(store, study), row.reason
    except DamageError as error:
        points, reason = {}, str(error)
    return SearchStatus(study, launcher, row.job_id, row.state, reason, points, str(run.log))
