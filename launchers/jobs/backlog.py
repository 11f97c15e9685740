"""What a job submits when it ends: stages beyond the user's limit of jobs, and parents whose jobs died without a word."""

import contextlib
import os
import re
import time
from collections.abc import Iterator

from retain.launchers.jobs.dead_attempts import settle_losses
from retain.launchers.jobs.submissions import Deferral, read_deferral, read_submission, write_deferral
from retain.launchers.local.worker import say
from retain.launchers.slurm.client import live_jobs, requeue_job
from retain.results.store.runs import Store
from retain.sweeps.base.processes import slurm_job

ENDED = ("done", "failed", "cancelled", "skipped")
LAST_WAIT_S = 15.0
"""How long the last job waits for others to leave the queue, before it goes back there itself to try later."""
LATER_S = 60
OF_A_JOB = re.compile(
    r"(SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|PMI|PMIX)_(?!CONF$|JWT$)|CUDA_VISIBLE_DEVICES$|ROCR_VISIBLE_DEVICES$"
    r"|GPU_DEVICE_ORDINAL$|(MASTER_(ADDR|PORT)|WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK)$"
)
"""Environment variables that a job must not hand down to one that it submits."""


def deferred_keys(store: Store) -> tuple[str, ...]:
    """Stages that are to be submitted once there is room, parents first."""
    return read_deferral(store).keys


def carry_on(store: Store) -> None:
    """Submit what had to wait, from a job whose run has ended; what goes wrong is logged, and fails nothing.

    Where there is no room, and no job left that will end later, this one waits for room; it goes back to the queue for
    that if it must.
    """
    if not deferred_keys(store):
        return
    job = slurm_job()
    deadline = time.monotonic() + LAST_WAIT_S
    try:
        while job is not None:
            with outside_job():
                last = _submit_deferred(store, job)
            if not last:
                return
            if time.monotonic() > deadline:
                requeue_job(job, LATER_S)
                return
            time.sleep(1.0)
    except Exception as error:  # the run has ended, and that stands
        say(f"the stages that wait for room were not submitted: {error}; retain submit takes them up")


def _submit_deferred(store: Store, job: str) -> bool:
    """Submit what there is room for; whether this job alone is left to submit the rest."""
    # It imports submitit, which takes its time.
    from retain.launchers.jobs.submit import alone, submit_held

    with alone(store):
        keys = deferred_keys(store)
        result = submit_held(store, keys)
        if result.jobs:
            say(f"submitted {sum(len(submitted) for _, submitted in result.jobs)} stages that had waited for room")
        carrier = read_deferral(store).carrier
        if not result.deferred or result.limit == 1:
            return False
        others = set(live_jobs()) - {job}
        if carrier in others or any(_will_end(store, other) for other in _of_store(store, others)):
            return False
        write_deferral(store, Deferral(tuple(result.deferred), job))
        return True


def _of_store(store: Store, job_ids: set[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Those of some jobs that this store's submissions made, with the keys of their runs."""
    made: dict[str, list[tuple[str, ...]]] = {}
    for path in (store.root / "submissions").glob("*/intent.json"):
        submission = read_submission(store, path.parent.name)
        if submission.job_id is not None:
            made[submission.job_id] = submission.tasks
    found = []
    for job_id in job_ids:
        array, _, task = job_id.partition("_")
        if array in made:
            found.append((job_id, made[array][int(task or 0)]))
    return found


def _will_end(store: Store, job: tuple[str, tuple[str, ...]]) -> bool:
    """Whether a job has its last run's end, and so its own turn to submit, before it."""
    return any(store.run(key).state().state not in ENDED for key in job[1])


def take_up_lost(store: Store, key: str) -> None:
    """Submit a run again whose job died without a word, if its failures allow it; what goes wrong is logged."""
    try:
        if settle_losses(store, [store.run(key)]):
            from retain.launchers.jobs.submit import submit_runs

            with outside_job():
                submit_runs(store, [key])
            say(f"submitted {key[:8]} again: {store.run(key).state().reason}")
    except Exception as error:  # the job waits, and tries again
        say(f"{key[:8]} was not submitted again: {error}")


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """The environment without what belongs to the job that this process is of: a new job would inherit it."""
    hidden = {name: value for name, value in os.environ.items() if OF_A_JOB.match(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
