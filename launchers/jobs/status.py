"""What SLURM adds to the status of runs: one squeue for all of them, and one sacct for those whose job is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retain.launchers.jobs.dead_attempts import explain_deaths, is_dead
from retain.launchers.jobs.submissions import JOB_NAME, read_submission, submitted_jobs
from retain.launchers.slurm.client import Job, has_slurm, live_jobs
from retain.results.store.runs import Store
from retain.results.store.state import UNENDED
from retain.results.store.status import RunStatus
from retain.sweeps.base.errors import MissingResourceError


@dataclass(frozen=True)
class Orphan:
    """A job of this store whose run has been deleted."""

    job_id: str
    """SLURM's id of the job."""
    key: str
    """The key of the deleted run."""

    @property
    def sentence(self) -> str:
        """What the job is, and the cure."""
        return f"job {self.job_id} is to train {self.key[:8]}, which this store no longer has: scancel {self.job_id}"


@dataclass(frozen=True)
class QueueStatus:
    """The rows of a status with what SLURM says about them."""

    runs: list[RunStatus]
    orphans: list[Orphan]
    unanswered: str | None = None
    """If SLURM was asked and did not answer: its message, and what the rows show instead."""


def ask_slurm(rows: list[RunStatus], store: Store) -> QueueStatus:
    """Ask SLURM about these runs, if it is installed and the store ever submitted a run."""
    if not (store.root / "submissions").is_dir() or not has_slurm():
        return QueueStatus(rows, [])
    try:
        live = live_jobs(everyone=True)
    except MissingResourceError as error:
        # A controller is sometimes away for a minute; the status goes without it.
        return QueueStatus(rows, [], f"{error}; these are the states that the runs noted last, without their jobs")
    return QueueStatus(with_jobs(rows, store, live), find_orphans(store, live))


def with_jobs(rows: Sequence[RunStatus], store: Store, live: Mapping[str, Job]) -> list[RunStatus]:
    """The rows with job ids and SLURM's reasons; a queued run whose job is gone is planned again.

    live: the jobs of all users that SLURM has not finished with.
    """
    unended = [row for row in rows if row.state in UNENDED]
    job_of = submitted_jobs(store, (store.run(row.key) for row in unended))
    if not job_of:
        return list(rows)
    # A row may be planned while state.json says running; a queued run has no process that could have died.
    begun = [store.run(row.key) for row in unended if row.key in job_of and row.state != "queued"]
    deaths = explain_deaths(store, [run for run in begun if is_dead(run, live)])
    found = []
    for row in rows:
        job = live.get(job_of.get(row.key, ""))
        if death := deaths.get(row.key):
            cure = "its job resumes it" if job else "retain submit submits it again"
            state = "queued" if job else "planned"
            found.append(replace(row, state=state, failure=death.failure, reason=f"{death.reason}; {cure}"))
        elif job is not None:
            state = "queued" if job.waits else row.state
            cure = "; retain submit asks SLURM to release it" if job.failed_to_start else ""
            reason = f"{job.reason}{cure}" if job.reason else row.reason
            found.append(replace(row, state=state, job_id=job.job_id, reason=reason))
        elif row.key in job_of and row.state == "queued":
            gone = f"its job {job_of[row.key]} is gone; retain submit submits it again"
            found.append(replace(row, state="planned", reason=gone))
        else:
            found.append(row)
    return found


def find_orphans(store: Store, live: Mapping[str, Job]) -> list[Orphan]:
    """The jobs of this store's submissions whose run has been deleted."""
    found = []
    keys_of: dict[str, Mapping[str, Sequence[str]]] = {}
    for job in live.values():
        if not job.name.startswith(JOB_NAME):
            continue
        if job.name not in keys_of:
            try:
                keys_of[job.name] = read_submission(store, job.name.removeprefix(JOB_NAME)).keys_of_jobs()
            except (FileNotFoundError, MissingResourceError):
                keys_of[job.name] = {}  # another store's
        keys = keys_of[job.name].get(job.job_id, ())
        if not any(store.run(key).folder.is_dir() for key in keys):
            found += [Orphan(job.job_id, key) for key in keys]
    return found
