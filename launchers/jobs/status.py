"""What SLURM adds to the status of runs: one squeue for all of them, and one sacct for those whose job is gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retain.launchers.jobs.dead_attempts import explain_losses, is_lost
from retain.launchers.jobs.submissions import JOB_NAME, read_submission, submitted_jobs
from retain.launchers.slurm.client import Job
from retain.results.store.runs import Store
from retain.results.store.status import RunStatus


@dataclass(frozen=True)
class Orphan:
    """A job of this store whose run is gone."""

    job_id: str
    key: str

    @property
    def sentence(self) -> str:
        """What it is, and the cure."""
        return f"job {self.job_id} is to train {self.key[:8]}, which this store no longer has: scancel {self.job_id}"


def with_jobs(rows: Sequence[RunStatus], store: Store, live: Mapping[str, Job]) -> list[RunStatus]:
    """The rows with job ids and SLURM's reasons; a queued run whose job SLURM does not know is planned again.

    live: the jobs of everyone that SLURM has not finished with.
    """
    unended = [row for row in rows if row.state in ("queued", "running", "planned")]
    job_of = submitted_jobs(store, (store.run(row.key) for row in unended))
    if not job_of:
        return list(rows)
    # One that is planned here may be marked as running in the store; one that is queued has no process to lose.
    begun = [store.run(row.key) for row in unended if row.key in job_of and row.state != "queued"]
    lost = [run for run in begun if is_lost(run, live)]
    losses = explain_losses(store, lost)
    found = []
    for row in rows:
        job = live.get(job_of.get(row.key, ""))
        if loss := losses.get(row.key):
            waits = "its job goes on with it" if job else "retain submit takes it up again"
            state = "queued" if job else "planned"
            found.append(replace(row, state=state, failure=loss.failure, reason=f"{loss.reason}; {waits}"))
        elif job is not None:
            state = "queued" if job.waits else row.state
            cure = "; retain submit asks SLURM to release it" if job.failed_to_start else ""
            reason = f"{job.reason}{cure}" if job.reason else row.reason
            found.append(replace(row, state=state, job_id=job.job_id, reason=reason))
        elif row.key in job_of and row.state == "queued":
            gone = f"its job {job_of[row.key]} is gone; retain submit takes it up again"
            found.append(replace(row, state="planned", reason=gone))
        else:
            found.append(row)
    return found


def orphans(store: Store, live: Mapping[str, Job]) -> list[Orphan]:
    """The jobs of this store's submissions whose run somebody has removed."""
    found = []
    submissions: dict[str, Mapping[str, Sequence[str]]] = {}
    for job in live.values():
        if not job.name.startswith(JOB_NAME):
            continue
        if job.name not in submissions:
            try:
                submissions[job.name] = read_submission(store, job.name.removeprefix(JOB_NAME)).keys_of_jobs()
            except (FileNotFoundError, ValueError):
                submissions[job.name] = {}  # another store's
        keys = submissions[job.name].get(job.job_id, ())
        if not any(store.run(key).folder.is_dir() for key in keys):
            found += [Orphan(job.job_id, key) for key in keys]
    return found
