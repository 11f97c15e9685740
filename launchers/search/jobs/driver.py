"""What the SLURM job of a search does: it goes on with the search, and back to the queue whenever it is stopped.

python -m retain.launchers.search.jobs.driver STORE STUDY TOKEN        the last line of its script, for a death without a word
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retain.launchers.local.worker import log_into, say
from retain.launchers.search.derived_studies import search_of
from retain.launchers.search.jobs.record import (
    BY_CANCEL,
    LOG,
    STAGES_AT_ONCE,
    SearchJob,
    begin_life,
    is_cancelled,
    is_unsaid,
    lose_life,
    read_end,
    read_search_job,
    stop_life,
    write_end,
)
from retain.launchers.slurm.client import own_job_is_cancelled, requeue_job
from retain.launchers.stage.signals import StopRequest
from retain.results.store.loss_table import study_folder
from retain.results.store.runs import Store
from retain.sweeps.base.errors import RetainError, StudyError
from retain.sweeps.base.processes import slurm_job
from retain.sweeps.schema.read import check_study

if TYPE_CHECKING:
    from retain.launchers.search.engine import Search
    from retain.launchers.search.ray.tune import Cluster


@dataclass(frozen=True)
class RunSearch:
    """What the job does, in each of its tasks; everything else it reads from the store."""

    store: str
    study: str
    token: str

    def __call__(self) -> str:
        """Returns what became of it; submitit keeps it. Raises SystemExit where the search failed."""
        stop = StopRequest()
        stop.install()
        store = Store(Path(self.store))
        asked = read_search_job(store, self.study)
        if asked is None or asked.token != self.token or is_cancelled(asked.files(store)):
            return "another job has taken its place, or it was cancelled"
        first = os.environ["SLURM_PROCID"] == "0"
        retry = False
        if first:
            log_into(study_folder(store.root, self.study) / LOG)
            say(f"job {slurm_job()} on {os.uname().nodename} searches {self.study}")
            retry = begin_life(asked.files(store))
        try:
            _search(store, asked, stop, retry)
        except KeyboardInterrupt:
            return _stopped(asked.files(store), stop) if first else "stopped"
        except Exception as error:
            if first:
                _failed(asked.files(store), error)
            raise SystemExit(1) from error
        return "done"


def _search(store: Store, asked: SearchJob, stop: StopRequest, retry: bool) -> None:
    """Go on with the search to its end. Raises KeyboardInterrupt once all is saved where a stop was asked for."""
    if asked.launcher == "slurm":
        _drive(store, asked, stop, retry, None)
        return
    from retain.launchers.search.ray.allocation import run_in_allocation

    run_in_allocation(asked.files(store), stop, lambda cluster: _drive(store, asked, stop, retry, cluster))


def _drive(store: Store, asked: SearchJob, stop: StopRequest, retry: bool, cluster: "Cluster | None") -> None:
    from retain.launchers.search.budget import parse_budget
    from retain.launchers.search.console import print_summary
    from retain.launchers.search.session import conclude, run_search

    file = check_study(dict(asked.fields), Path(asked.path))
    searched = search_of(file, store.root, lambda name, documents, tokens: None)
    execution = file.study.execution
    limit = parse_budget(asked.budget, asked.device) if asked.budget is not None else None
    # What an allocation holds is known once its cluster is there.
    parallel = execution.parallel or (STAGES_AT_ONCE if cluster is None else 1)

    def train(search: "Search") -> None:
        if cluster is None:
            from retain.launchers.search.jobs.stage_jobs import train_with_jobs

            train_with_jobs(search, asked.profile(), stop)
        else:
            from retain.launchers.search.ray.tune import train_with_tune

            train_with_tune(search, store, replace(cluster, execution=execution), searched.folder / "tune")

    document = conclude(run_search(searched, limit, parallel, train, stop, retry), searched)
    print_summary(document)
    write_end(asked.files(store), "done")


def _stopped(files: Path, stop: StopRequest) -> str:
    """Back into the queue, unless somebody has cancelled the job: SLURM then is ending it already."""
    say(f"stopped by {stop.signal}; what is done is kept")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job = slurm_job()
    assert job is not None
    if is_cancelled(files) or own_job_is_cancelled():
        write_end(files, "cancelled", BY_CANCEL if is_cancelled(files) else "by scancel")
        return "cancelled"
    stop_life(files)
    _requeue(job)
    return "stopped"


def _failed(files: Path, error: Exception) -> None:
    """A study that makes no sense stays so; anything else may go better, unless it has happened too often."""
    sentence = str(error) if isinstance(error, RetainError) else f"{type(error).__name__}: {error}"
    say(f"failed: {sentence}")
    if not isinstance(error, RetainError):
        import traceback

        traceback.print_exception(error)
    _try_again(files, sentence, not isinstance(error, StudyError))


def _try_again(files: Path, sentence: str, hopeful: bool = True) -> None:
    job = slurm_job()
    assert job is not None
    if lose_life(files) and hopeful:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("back to the queue")
        _requeue(job)
    else:
        write_end(files, "failed", sentence)


def _requeue(job: str) -> None:
    try:
        requeue_job(job)
    except (subprocess.SubprocessError, OSError) as error:
        say(f"SLURM does not take the job back ({error}); retain search goes on from here")


def after_death(arguments: list[str]) -> int:
    """The last line of the job's script: back to the queue where its process died without a word."""
    root, study, token = arguments
    store = Store(Path(root))
    asked = read_search_job(store, study)
    if asked is None or asked.token != token:
        return 0
    files = asked.files(store)
    if is_unsaid(files) and not is_cancelled(files):
        log_into(study_folder(store.root, study) / LOG)
        sentence = "its process died without a word"
        say(sentence)
        _try_again(files, sentence)
    end = read_end(files)
    return 1 if end is not None and end[0] == "failed" else 0


if __name__ == "__main__":
    sys.exit(after_death(sys.argv[1:]))
