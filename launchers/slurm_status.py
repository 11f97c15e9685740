"""What SLURM adds to the status of runs: one squeue for all of them, and one sacct for those whose job is gone."""

from collections.abc import Sequence
from dataclasses import replace

from launchers.lost import explain_losses, is_lost
from launchers.slurm import has_slurm, live_jobs
from launchers.submissions import submitted_job
from results.status import RunStatus
from results.store import Store


def with_jobs(rows: Sequence[RunStatus], store: Store) -> list[RunStatus]:
    """The rows with job ids and SLURM's reasons; a queued run whose job SLURM does not know is planned again."""
    job_of = {
        row.key: named
        for row in rows
        if row.state in ("queued", "running", "planned") and (named := submitted_job(store, store.run(row.key)))
    }
    if not job_of or not has_slurm():
        return list(rows)
    live = live_jobs(job_of.values())
    lost = [run for row in rows if row.key in job_of and is_lost(run := store.run(row.key), live)]
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
            found.append(replace(row, state=state, job_id=job.job_id, reason=job.reason or row.reason))
        elif row.key in job_of and row.state == "queued":
            gone = f"its job {job_of[row.key]} is gone; retain submit takes it up again"
            found.append(replace(row, state="planned", reason=gone))
        else:
            found.append(row)
    return found
