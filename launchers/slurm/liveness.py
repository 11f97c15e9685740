"""Whether the SLURM job that holds a lease is gone, for a watcher of leases of other machines."""

import time

from retain.launchers.slurm.client import has_slurm, live_jobs
from retain.results.store.lease import Owner, Witness
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes import slurm_job

ASK_AGAIN_S = 30.0
"""A watcher looks several times a second; SLURM is asked about a job this often at most."""


def scheduler_witness() -> Witness:
    """A witness that asks SLURM, where there is one, whether the owner of a lease still has its job."""
    answers: dict[str, tuple[float, bool | None]] = {}

    def job_is_gone(owner: Owner) -> bool | None:
        # This very job, perhaps in an earlier life on another node: silence alone tells.
        if owner.job_id is None or owner.job_id == slurm_job() or not has_slurm():
            return None
        asked, gone = answers.get(owner.job_id, (-ASK_AGAIN_S, None))
        if time.monotonic() - asked >= ASK_AGAIN_S:
            try:
                gone = owner.job_id not in live_jobs([owner.job_id])
            except MissingResourceError:
                gone = None
            answers[owner.job_id] = (time.monotonic(), gone)
        return gone

    return Witness(job_is_gone)
