"""One start of a search, from its history to its end. One process at a time searches a study of a store."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launchers.heartbeat import heartbeat
from launchers.owners import scheduler_witness
from launchers.search.budget import Budget
from launchers.search.driver import Search
from launchers.search.executor import Cluster, train_with_tune
from launchers.search.history import open_history
from launchers.search.show import searching
from launchers.search.studies import SearchedStudy
from results.lease import SILENCE_S, Lease, read_owner, take_lease
from sweeps.errors import StudyError


def run_search(searched: SearchedStudy, budget: Budget | None, parallel: int, cluster: Cluster) -> Search:
    """Go on with a search until its trials or its budget are used up; Ray is started only if a stage is to be trained.

    Raises StudyError where another process searches the study, KeyboardInterrupt once all processes have saved and ended.
    """
    searched.folder.mkdir(parents=True, exist_ok=True)
    with _alone(searched.folder / "search-lease.json", searched.name):
        history, note = open_history(searched.folder / "search.json", searched.identity())
        if note:
            print(f"retain: {note}", file=sys.stderr)
        search = Search(searched, history, budget, parallel)
        first = search.next_stage()
        if first is not None:
            search.at_work.discard(first.key)
        if not search.finished():
            with searching(search) as look:
                search.look = look
                train_with_tune(search, searched.store, cluster, searched.folder / "tune")
        search.save()
    return search


def _taken(place: Path, study: str) -> Lease:
    """The search's lease; that of another machine is waited for until its owner is known to be dead."""
    witness, deadline, told = scheduler_witness(), time.monotonic() + SILENCE_S + 60, False
    while (lease := take_lease(place, witness)) is None:
        owner = read_owner(place)
        if (owner is not None and owner.is_here()) or time.monotonic() > deadline:
            raise StudyError(f"{study}: another process is searching this study in this store; wait for it, or stop it")
        if not told:
            print(
                f"retain: a search began on {owner.host if owner else 'another machine'}; does it live?",
                file=sys.stderr,
            )
            told = True
        time.sleep(1)
    return lease


@contextlib.contextmanager
def _alone(place: Path, study: str) -> Iterator[None]:
    """Hold the search's lease. Raises StudyError where somebody else does."""
    lease = _taken(place, study)
    try:
        with heartbeat(lease):
            yield
    finally:
        lease.release()
