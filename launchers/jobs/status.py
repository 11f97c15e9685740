"""What SLURM adds to the status of runs: one call of squeue for all of them, one of sacct for those whose job is gone."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retain.launchers.jobs.dead_attempts import explain_deaths, is_dead
from retain.launchers.jobs.submissions import (
    LEASE,
    Backlog,
    any_has_runs,
    first_log,
    keys_of_jobs,
    read_backlog,
    still_live,
    submitted_jobs,
    token_of,
    unanswered_jobs,
)
from retain.launchers.slurm.client import Job, has_slurm, live_jobs
from retain.results.store.lease import is_held
from retain.results.store.readiness import need_in_words, unfinished_needs
from retain.results.store.runs import Store
from retain.results.store.state import UNENDED
from retain.results.store.status import RunStatus
from retain.sweeps.base.errors import DamageError, MissingResourceError

UNANSWERED = "its submission was interrupted, and SLURM has no job for it; submit its study again"


@dataclass(frozen=True)
class Orphan:
    """A job of this store whose run has been deleted."""

    job_id: str
    """SLURM's id of the job."""
    key: str
    """The key of the deleted run."""

    @property
    def sentence(self) -> str:
        """What is wrong, and how to fix it."""
        return f"job {self.job_id} would train {self.key[:8]}, which this store no longer has: scancel {self.job_id}"


@dataclass(frozen=True)
class QueueStatus:
    """The rows of a status, completed by SLURM."""

    runs: list[RunStatus]
    orphans: list[Orphan]
    unanswered: str | None = None
    """The error message if SLURM did not answer; the rows are then those of the store."""


def ask_slurm(rows: list[RunStatus], store: Store) -> QueueStatus:
    """Ask SLURM about these runs, if it is installed and runs of this store were ever submitted."""
    if not (store.root / "submissions").is_dir() or not has_slurm():
        return QueueStatus(rows, [])
    try:
        live = live_jobs(everyone=True)
    except MissingResourceError as error:
        # A controller is sometimes away for a minute. The store knows enough for a status.
        return QueueStatus(rows, [], f"{error}; these are the last states in the store, without jobs")
    return QueueStatus(with_jobs(rows, store, live), find_orphans(store, live))


def with_jobs(rows: Sequence[RunStatus], store: Store, live: Mapping[str, Job]) -> list[RunStatus]:
    """The rows with job ids and SLURM's reasons; a queued run whose job is gone is planned again.

    live: the jobs of all users that SLURM has not finished with.
    """
    unended = [row for row in rows if row.state in UNENDED]
    damaged: dict[str, str] = {}
    job_of = submitted_jobs(store, (store.run(row.key) for row in unended), damaged)
    unanswered = {row.key for row in unended if row.state == "queued"} - job_of.keys() - damaged.keys()
    backlog = read_backlog(store)
    if not job_of and not damaged and not unanswered and not backlog.keys:
        return list(rows)
    job_of |= unanswered_jobs(store, map(store.run, sorted(unanswered)), live)
    alive = still_live(store, job_of, live)
    is_submitting = is_held(store.root / "submissions" / LEASE)
    # 1. Explain attempts that died. Rows of dead runs say planned although state.json says running.
    begun = [store.run(row.key) for row in unended if row.key in job_of and row.state != "queued"]
    deaths = explain_deaths(store, [run for run in begun if is_dead(store, run, live)])
    # 2. Complete each row by the death of its attempt, by its job, by the fact that its job is gone or was never submitted, or
    # by its place in the backlog.
    submitter = _submitter(store, backlog, live) if backlog.keys else ""
    found = []
    for row in rows:
        job = live.get(alive.get(row.key, ""))
        if death := deaths.get(row.key):
            cure = "its job resumes it" if job else "submit its study again"
            state = "queued" if job else "planned"
            found.append(replace(row, state=state, failure=death.failure, reason=f"{death.reason}; {cure}"))
        elif job is not None:
            state = "queued" if job.waits else row.state
            cure = "; submit its study again to release it" if job.failed_to_start else ""
            reasons = [_waits_for(store, row.key, job) + cure, row.reason] if job.reason else [row.reason]
            reason = "; ".join(filter(None, reasons)) or None
            found.append(replace(row, state=state, job_id=job.job_id, reason=reason))
        elif row.key in job_of and row.state == "queued":
            log = first_log(store, store.run(row.key), job_of[row.key])
            gone = f"its job {job_of[row.key]} is gone{f', its log is {log}' if log else ''}; submit its study again"
            found.append(replace(row, state="planned", reason=gone, log=row.log or (str(log) if log else None)))
        elif row.key in unanswered and not is_submitting:
            found.append(replace(row, state="planned", reason=UNANSWERED))
        elif row.key in backlog.keys and row.state == "planned":
            found.append(replace(row, reason=f"waits for room within your limit of jobs; {submitter}"))
        else:
            found.append(replace(row, reason=damaged.get(row.key, row.reason)))
    return found


def _submitter(store: Store, backlog: Backlog, live: Mapping[str, Job]) -> str:
    """Who submits the backlog, as a clause."""
    if backlog.carrier in live:
        return f"job {backlog.carrier} submits it"
    if any_has_runs(store, live.values()):
        return "the next of your jobs of this store that ends submits it"
    return "no job of this store is left to submit it: submit its study again once you have fewer jobs"


def _waits_for(store: Store, key: str, job: Job) -> str:
    """SLURM's reason for which a job waits, and the run that it needs, if that is not done yet, or what to do about it."""
    if job.reason not in ("Dependency", "BeginTime"):
        return ": ".join(filter(None, [job.reason, job.cure]))
    return ": ".join([job.reason, *map(need_in_words, unfinished_needs(store, store.run(key))[:1])])


def find_orphans(store: Store, live: Mapping[str, Job]) -> list[Orphan]:
    """The jobs of this store's submissions whose run has been deleted."""
    found = []
    keys_of = functools.cache(functools.partial(keys_of_jobs, store))
    for job in live.values():
        if token := token_of(job.name):
            # A job of another store has no record here, so no keys.
            try:
                keys = keys_of(token).get(job.job_id, ())
            except DamageError:  # the rows of its runs say so
                continue
            if not any(store.run(key).folder.is_dir() for key in keys):
                found += [Orphan(job.job_id, key) for key in keys]
    return found
