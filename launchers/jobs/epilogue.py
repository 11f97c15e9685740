"""The last line of a job's script: put the job back into the queue where its processes died without a word, and submit
what had to wait for it.

python -m retain.launchers.jobs.epilogue STORE TOKEN
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from retain.launchers.jobs.backlog import ENDED, carry_on
from retain.launchers.jobs.dead_attempts import explain_losses, settle_loss
from retain.launchers.jobs.submissions import read_submission
from retain.launchers.slurm.client import exclude_nodes, live_jobs, requeue_job
from retain.launchers.stage.failures import ON_SLURM, next_attempt
from retain.launchers.stage.rank_failures import blamed_nodes
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes import slurm_job


def main(arguments: list[str]) -> int:
    """Exit code of the script: that of the job."""
    root, token = arguments
    store = Store(Path(root))
    submission = read_submission(store, token)
    runs = [run for key in submission.own_keys() if (run := store.run(key)).folder.is_dir()]
    lost = next((run for run in runs if run.state().state == "running" and run.state().submission == token), None)
    lost = lost or _never_begun(runs, token)
    if lost is None:
        if all(run.state().state in ENDED for run in runs):
            carry_on(store)
        return 0
    loss = explain_losses(store, [lost])[lost.key]
    again = settle_loss(lost, loss, again="queued")
    if again is None:  # another job, or another launcher, has taken it over
        return 0
    if not again and all(run.state().state in ENDED for run in runs):
        carry_on(store)
        return 1
    job = slurm_job()
    assert job is not None
    requeue_job(job)
    policy = next_attempt(lost.state(), ON_SLURM)
    if policy is not None and policy.elsewhere:
        exclude_nodes(job, blamed_nodes(lost.folder, loss.reason, int(os.environ.get("SLURM_NNODES", "1"))))
    return 1


def _never_begun(runs: Sequence[Run], token: str) -> Run | None:
    """The run whose turn it was in a job that died before it could enter an attempt: it is entered now, as lost."""
    job = slurm_job()
    try:
        found = live_jobs([job]).get(job) if job else None
    except MissingResourceError:
        return None
    # A job that has asked to go back into the queue may come here on its way.
    if found is None or found.state != "RUNNING":
        return None
    run = next((run for run in runs if run.state().state not in ENDED and run.state().submission == token), None)
    if run is None or (lease := take_lease(run.lease)) is None:
        return None
    run.begin_attempt(os.getpid(), run.state().progress.tokens)
    lease.release()
    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
