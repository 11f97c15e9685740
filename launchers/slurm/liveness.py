"""Whether the SLURM job that holds a lease has ended, for a watcher on another machine."""

import time

from retain.launchers.slurm.client import has_slurm, live_jobs
from retain.results.store.lease import LivenessChecker, Owner
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes import slurm_job

ASK_AGAIN_S = 30.0
"""A watcher polls several times a second; SLURM is asked about a job at most this often."""


def slurm_liveness(own_job_is_dead: bool = False) -> LivenessChecker:
    """A liveness checker that asks SLURM, if there is one, whether the owner of a lease still has its job.

    own_job_is_dead: what to assume of an owner that ran in this very job, on another node: an earlier life of the job.
    """
    answers: dict[str, tuple[float, bool | None]] = {}

    def job_has_ended(owner: Owner) -> bool | None:
        if owner.job_id is None or not has_slurm():
            return None
        if owner.job_id == slurm_job():
            return True if own_job_is_dead else None
        asked_at, ended = answers.get(owner.job_id, (-ASK_AGAIN_S, None))
        if time.monotonic() - asked_at >= ASK_AGAIN_S:
            try:
                ended = owner.job_id not in live_jobs([owner.job_id])
            except MissingResourceError:
                ended = None
            answers[owner.job_id] = (time.monotonic(), ended)
        return ended

    return LivenessChecker(job_has_ended)
