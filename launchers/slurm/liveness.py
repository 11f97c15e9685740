"""Ask SLURM whether the job that holds a lease has ended, for a watcher on another machine."""

import time

from retain.launchers.slurm.client import has_slurm, live_jobs
from retain.results.store.lease import LivenessChecker, Owner
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes.names import slurm_job

ASK_AGAIN_S = 30.0
"""Seconds between two questions about the same job; a watcher polls several times a second."""


def slurm_liveness() -> LivenessChecker:
    """A liveness checker that asks SLURM, if there is one, whether the owner of a lease still has its job.

    SLURM cannot tell this for an owner in an earlier start of this process's own job, which keeps its id when it is requeued.
    """
    answers: dict[str, tuple[float, bool | None]] = {}

    def job_has_ended(owner: Owner) -> bool | None:
        if owner.job_id is None or owner.job_id == slurm_job() or not has_slurm():
            return None
        asked_at, ended = answers.get(owner.job_id, (-ASK_AGAIN_S, None))
        if time.monotonic() - asked_at >= ASK_AGAIN_S:
            try:
                ended = owner.job_id not in live_jobs([owner.job_id])
            except MissingResourceError:
                ended = None
            answers[owner.job_id] = (time.monotonic(), ended)
        return ended

    return LivenessChecker(job_has_ended)
