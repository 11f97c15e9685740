"""What a job submits when it ends: runs beyond the user's limit of jobs, and needed runs whose jobs died."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from retain.launchers.jobs.dead_attempts import settle_dead_attempts
from retain.launchers.jobs.submissions import any_is_ending, is_attended, read_backlog, submission_lease, write_backlog
from retain.launchers.slurm.client import asked_patiently, live_jobs, requeue_job
from retain.launchers.slurm.partitions import Limits, read_limits, room_within
from retain.launchers.stage.log import log_line
from retain.results.store.runs import Run, Store
from retain.sweeps.base.notices import Waiting
from retain.sweeps.base.processes.names import slurm_job
from retain.sweeps.base.units import counted

LAST_WAIT_S = 15.0
"""How long a job waits for room in the queue, before it leaves the rest to others, or requeues itself to try later."""
LATER_S = 60
LOOKED_AT = 200
"""The waiting runs that a job looks at together: each takes some ten reads, and there is room for few."""


class _CarriedError(Exception):
    """Another job carries the backlog."""


def submit_backlog(store: Store) -> None:
    """Submit the backlog from a job whose runs have ended. Errors are logged; they do not fail the job.

    If there is no room, this job waits while other jobs end, which makes room, or if no other job will submit the rest. In the
    end it requeues itself if it must.
    """
    job = slurm_job()
    deadline = time.monotonic() + LAST_WAIT_S
    waiting = Waiting("runs wait for room in the queue")
    try:
        while job is not None and read_backlog(store).keys:
            is_late = time.monotonic() > deadline
            if not asked_patiently(partial(_submit_and_is_needed, store, job, is_late)):
                return
            if is_late:
                requeue_job(job, LATER_S)
                return
            waiting.say(
                f"this job waits {LAST_WAIT_S:.0f} s for it, and then requeues itself to try again after {LATER_S} s if no "
                "other job of the store is left"
            )
            time.sleep(1.0)
    except Exception as error:  # the job's own runs have ended whatever happens here
        log_line(f"the runs that wait for room were not submitted: {error}; submit the study again")


def submit_dead(store: Store, run: Run) -> None:
    """Submit a run again whose job died without reporting, if its failures allow it. Errors are logged; the caller retries."""
    try:
        if settle_dead_attempts(store, [run]):
            from retain.launchers.jobs.submit import submit_runs

            why = run.state().reason
            submit_runs(store, [run.key])
            log_line(f"submitted {run.key[:8]} again: {why}")
    except Exception as error:
        log_line(f"{run.key[:8]} was not submitted again: {error}")


def _submit_and_is_needed(store: Store, job: str, is_late: bool) -> bool:
    """Submit as much of the backlog as there is room for. Returns whether this job is needed for the rest.

    is_late: whether it has waited long enough for room that other jobs make as they end.
    """
    # 1. Many jobs may end together, and would wait for the lease in turn: without room, this one leaves the rest to another.
    limits = read_limits()
    room = room_within(limits)
    is_full = room is not None and room <= 0
    if is_full and read_backlog(store).carrier != job and _is_left_to_others(store, job, is_late):
        return False
    try:
        with submission_lease(store, _leave_to_carrier(store, job)):
            # 2. Submit what there is room for, without runs that a user has deleted since.
            backlog, present = read_backlog(store), set(os.listdir(store.root))
            keys = tuple(key for key in backlog.keys if key in present)
            if keys != backlog.keys:
                write_backlog(store, replace(backlog, keys=keys))
            submitted = _submit_some(store, keys, limits)
            if submitted:
                log_line(f"submitted {counted(submitted, 'run')} that had waited for room")
            # 3. Leave the rest to another job of this store, if there is one. Otherwise this job carries it: others leave it to
            # this one.
            if not read_backlog(store).keys or limits.jobs == 1 or _leaves_to_others(store, job, is_late):
                return False
            write_backlog(store, replace(read_backlog(store), carrier=job))
            return True
    except _CarriedError:
        return False


def _is_left_to_others(store: Store, job: str, is_late: bool) -> bool:
    """Whether another job of this store will submit the backlog, and there will not be room for it in a moment."""
    # One that is COMPLETING may have ended without.
    others = {job_id: one for job_id, one in live_jobs().items() if job_id != job and one.counts}
    if (backlog := read_backlog(store)).carrier not in others and not is_late and any_is_ending(store, others.values()):
        return False
    return is_attended(store, backlog, others)


def _leaves_to_others(store: Store, job: str, is_late: bool) -> bool:
    """`_is_left_to_others`, after which no other job leaves the backlog to this one. For the holder of the submission lease."""
    if not _is_left_to_others(store, job, is_late):
        return False
    if (backlog := read_backlog(store)).carrier != job:
        return True
    # The other job may have ended meanwhile, and have left the backlog to its carrier, this job.
    write_backlog(store, replace(backlog, carrier=None))
    return _is_left_to_others(store, job, is_late)


def _leave_to_carrier(store: Store, job: str) -> Callable[[], None]:
    """A function to call while this job waits for the lease: it raises _CarriedError once another job carries the backlog."""
    asked: set[str | None] = {job, None}

    def look() -> None:
        carrier = read_backlog(store).carrier
        if carrier not in asked:
            asked.add(carrier)
            if carrier in {job_id for job_id, one in live_jobs([str(carrier)]).items() if one.counts}:
                raise _CarriedError

    return look


def _submit_some(store: Store, keys: Sequence[str], limits: Limits) -> int:
    """Submit some of these runs, looking at them only while there is room. Returns how many."""
    # submitit takes a while to import.
    from retain.launchers.jobs.submit import settle_unanswered, submit_missing

    settle_unanswered(store)
    room, submitted = room_within(limits), 0
    for first in range(0, len(keys), LOOKED_AT):
        if room is not None and room <= 0:
            break
        result, room = submit_missing(store, keys[first : first + LOOKED_AT], limits, room)
        submitted += sum(len(one.keys) for one in result.jobs)
    return submitted
