"""What a job submits when it ends: runs beyond the user's limit of jobs, and needed runs whose jobs died."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from retain.launchers.jobs.dead_attempts import settle_dead_attempts
from retain.launchers.jobs.submissions import is_attended, read_backlog, write_backlog
from retain.launchers.slurm.client import asked_patiently, live_jobs, requeue_job
from retain.launchers.slurm.partitions import read_limits
from retain.launchers.stage.log import log_line
from retain.results.store.runs import Run, Store
from retain.sweeps.base.notices import Waiting
from retain.sweeps.base.processes.names import slurm_job
from retain.sweeps.base.units import counted

LAST_WAIT_S = 15.0
"""How long the last job waits for room in the queue, before it requeues itself to try later."""
LATER_S = 60
LOOKED_AT = 200
"""The waiting runs that a job looks at together: each takes some ten reads, and there is room for few."""


def submit_backlog(store: Store) -> None:
    """Submit the backlog from a job whose runs have ended. Errors are logged; they do not fail the job.

    If there is no room and no other job will submit the rest, this job waits for room, and requeues itself if it must.
    """
    job = slurm_job()
    deadline = time.monotonic() + LAST_WAIT_S
    waiting = Waiting("this is the last job, and runs wait for room in the queue")
    try:
        while (
            job is not None and read_backlog(store).keys and asked_patiently(partial(_submit_and_is_last, store, job))
        ):
            if time.monotonic() > deadline:
                requeue_job(job, LATER_S)
                return
            waiting.say(
                f"it waits {LAST_WAIT_S:.0f} s for room, and then requeues itself to try again after {LATER_S} s"
            )
            time.sleep(1.0)
    except Exception as error:  # the job's own runs have ended whatever happens here
        log_line(f"the runs that wait for room were not submitted: {error}; submit the study again")


def submit_dead(store: Store, run: Run) -> None:
    """Submit a run again whose job died without reporting, if its failures allow it. Errors are logged; the caller retries."""
    try:
        if settle_dead_attempts(store, [run]):
            from retain.launchers.jobs.submit import submit_runs

            submit_runs(store, [run.key])
            log_line(f"submitted {run.key[:8]} again: {run.state().reason}")
    except Exception as error:
        log_line(f"{run.key[:8]} was not submitted again: {error}")


def _submit_and_is_last(store: Store, job: str) -> bool:
    """Submit as much of the backlog as there is room for. Returns whether only this job is left to submit the rest."""
    # submitit takes a while to import.
    from retain.launchers.jobs.submit import submission_lease

    with submission_lease(store):
        # 1. Submit what there is room for, without runs that a user has deleted since.
        backlog, present = read_backlog(store), set(os.listdir(store.root))
        keys = tuple(key for key in backlog.keys if key in present)
        if keys != backlog.keys:
            write_backlog(store, replace(backlog, keys=keys))
        submitted, limit = _submit_some(store, keys)
        if submitted:
            log_line(f"submitted {counted(submitted, 'run')} that had waited for room")
        backlog = read_backlog(store)
        if not backlog.keys or limit == 1:
            return False
        # 2. Leave the rest to another job of this store, if there is one.
        others = {job_id: one for job_id, one in live_jobs().items() if job_id != job}
        if is_attended(store, backlog, others):
            return False
        # 3. Otherwise this job becomes the one that others leave the rest to.
        write_backlog(store, replace(backlog, carrier=job))
        return True


def _submit_some(store: Store, keys: Sequence[str]) -> tuple[int, int | None]:
    """Submit some of these runs, looking at them only while there is room. Returns how many, and the user's limit of jobs."""
    from retain.launchers.jobs.submit import room_within, settle_unanswered, submit_missing

    settle_unanswered(store)
    limits, submitted = read_limits(), 0
    room = room_within(limits)
    for first in range(0, len(keys), LOOKED_AT):
        if room is not None and room <= 0:
            break
        result, room = submit_missing(store, keys[first : first + LOOKED_AT], limits, room)
        submitted += sum(len(one.keys) for one in result.jobs)
    return submitted, limits.jobs
