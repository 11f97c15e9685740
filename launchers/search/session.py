"""One start of a search, from its history to its end. One process at a time searches a study of a store."""

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from retain.launchers.jobs.branches import WITH_STUDY, plan_again
from retain.launchers.search.budget import Budget
from retain.launchers.search.console import searching, summary_document
from retain.launchers.search.derived_studies import SearchedStudy
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.launchers.slurm.liveness import scheduler_witness
from retain.launchers.stage.heartbeat import heartbeat
from retain.launchers.stage.signals import StopRequest
from retain.results.store.lease import SILENCE_S, Lease, Owner, Witness, read_owner, take_lease
from retain.results.store.study_files import HISTORY, SUMMARY
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import write_json
from retain.sweeps.base.processes import slurm_job

LOOK_S = 1.0
LEAVING_S = 60.0
GIVEN_UP = "given up by its search"
"""Why a run was cancelled that the search no longer wants, until it has stopped."""


def run_search(
    searched: SearchedStudy,
    budget: Budget | None,
    parallel: int,
    train: Callable[[Search], None],
    stop: StopRequest | None = None,
    retry: bool = True,
) -> Search:
    """Go on with a search until its trials or its budget are used up; `train` is called only if a stage is to be trained.

    stop: where a job's stop signals are noted. retry: stages that failed, or were cancelled with the study, are tried once
    more, as in a start by hand. Raises StudyError where another process searches the study, or the budget does not reach
    for one point; KeyboardInterrupt once all processes have saved and ended.
    """
    searched.folder.mkdir(parents=True, exist_ok=True)
    with _alone(searched.folder / "search-lease.json", searched.name, stop):
        history, note = open_history(searched.folder / HISTORY, searched.identity())
        if note:
            print(f"retain: {note}", file=sys.stderr)
        search = Search(searched, history, budget, parallel)
        search.check_budget()
        if note and history.ends:
            search.draw_curves()  # those of another history lie there
        if retry:
            # All of them now: a job that is stopped before their turn comes tries them in its next life.
            plan_again(search.store, sorted(search.again))
        else:
            search.again.clear()
        _take_up(search, (GIVEN_UP, WITH_STUDY) if retry else (GIVEN_UP,), stop)
        first = search.next_stage()
        if first is not None:
            search.at_work.discard(first.key)
        if not search.finished():
            with searching(search) as look:
                search.look = look
                train(search)
        search.save()
    return search


def conclude(search: Search, searched: SearchedStudy) -> dict[str, Any]:
    """Keep what a finished search has found, and the study that confirms it; the document of `retain search --json`."""
    document = summary_document(search, searched)
    write_json(searched.folder / SUMMARY, document)
    return document


def _take_up(search: Search, reasons: Collection[str], stop: StopRequest | None) -> None:
    """Plan the stages again that were cancelled for one of these reasons, once they train no more, and skipped ones.

    What was skipped by a `retain submit` waits for its parent as any other stage does.
    """
    runs = [
        search.store.run(key)
        for key, state in search.states().items()
        if state.state == "skipped" or (state.state == "cancelled" and state.reason in reasons)
    ]
    witness = scheduler_witness()
    while any(run.is_running(witness) for run in runs):
        _heed(stop)
        time.sleep(LOOK_S)
    plan_again(search.store, [run.key for run in runs])


def _heed(stop: StopRequest | None) -> None:
    if stop is not None and stop.signal:
        raise KeyboardInterrupt


def _taken(place: Path, study: str, stop: StopRequest | None) -> Lease:
    """The search's lease; that of another machine is waited for until its owner is known to be dead."""
    witness, began, told = _witness(), time.monotonic(), False
    while (lease := take_lease(place, witness)) is None:
        owner = read_owner(place)
        if time.monotonic() > began + _patience(owner, stop is not None):
            raise StudyError(f"{study}: another process is searching this study in this store; wait for it, or stop it")
        if not told:
            print(
                f"retain: a search began on {owner.host if owner else 'another machine'}; does it live?",
                file=sys.stderr,
            )
            told = True
        _heed(stop)
        time.sleep(LOOK_S)
    return lease


def _patience(owner: Owner | None, in_job: bool) -> float:
    """Seconds to wait for the lease. A job may begin on a node before the one that it replaces has quite left."""
    if owner is None or not owner.is_here():
        return SILENCE_S + 60
    return LEAVING_S if in_job and owner.job_id is not None else 0.0


def _witness() -> Witness:
    scheduler = scheduler_witness().job_is_gone

    def job_is_gone(owner: Owner) -> bool | None:
        # This very job holds it in an earlier life on a node that SLURM has given up.
        if owner.job_id is not None and owner.job_id == slurm_job():
            return True
        return scheduler(owner) if scheduler else None

    return Witness(job_is_gone)


@contextlib.contextmanager
def _alone(place: Path, study: str, stop: StopRequest | None) -> Iterator[None]:
    """Hold the search's lease. Raises StudyError where somebody else does."""
    lease = _taken(place, study, stop)
    try:
        with heartbeat(lease):
            yield
    finally:
        lease.release()
