"""Taking back and taking up again: cancel and retry, of a study, or of a run with all that lies below it."""

from collections.abc import Sequence
from dataclasses import replace

from launchers.slurm import cancel_jobs, has_slurm
from launchers.submissions import submitted_job
from results.store import Store

ENDED_BADLY = ("failed", "cancelled", "skipped")


def branch(store: Store, key: str) -> list[str]:
    """A run of the store and every run below it, parents first."""
    parents = {run.key: run.spec()["parent"] for run in store.runs()}
    found = [key]
    for above in found:
        found += [below for below, parent in parents.items() if parent == above]
    return found


def cancel_runs(store: Store, keys: Sequence[str]) -> list[str]:
    """Mark runs that have not ended as cancelled, and take their jobs back from SLURM; returns their keys.

    Marked first: a job that starts meanwhile sees it. A stage that trains on this machine is stopped by Ctrl-C instead.
    """
    cancelled, jobs = [], []
    for key in keys:
        run = store.run(key)
        state = run.state()
        if state.state in ("queued", "running", "planned"):
            if job := submitted_job(store, run):
                jobs.append(job)
            run.save_state(replace(state, state="cancelled", reason="by retain cancel"))
            cancelled.append(key)
    if jobs and has_slurm():
        cancel_jobs(jobs)
    return cancelled


def plan_again(store: Store, keys: Sequence[str]) -> list[str]:
    """Make runs that failed, were cancelled or skipped planned again; returns their keys."""
    found = [key for key in keys if store.run(key).state().state in ENDED_BADLY]
    for key in found:
        run = store.run(key)
        run.save_state(replace(run.state(), state="planned", reason=None, submission=None))
    return found
