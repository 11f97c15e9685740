"""The last line of a job's script: put the job back into the queue where its processes died without a word, and submit
what had to wait for it.

python -m launchers.slurm_after STORE TOKEN
"""

import os
import sys
from pathlib import Path

from launchers.causes import blamed_nodes
from launchers.deferred import carry_on
from launchers.failures import ON_SLURM, next_attempt
from launchers.lost import explain_losses, settle_loss
from launchers.slurm import exclude_nodes, requeue_job
from launchers.submissions import read_submission
from results.store import Store
from sweeps.processes import slurm_job

ENDED = ("done", "failed", "cancelled", "skipped")


def main(arguments: list[str]) -> int:
    """Exit code of the script: that of the job."""
    root, token = arguments
    store = Store(Path(root))
    submission = read_submission(store, token)
    run = store.run(submission.keys[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    if run.state().state != "running":
        if run.state().state in ENDED:
            carry_on(store)
        return 0
    loss = explain_losses(store, [run])[run.key]
    again = settle_loss(run, loss, again="queued")
    if again is None:  # another job, or another launcher, has taken it over
        return 0
    if not again:
        carry_on(store)
        return 1
    job = slurm_job()
    assert job is not None
    requeue_job(job)
    policy = next_attempt(run.state(), ON_SLURM)
    if policy is not None and policy.elsewhere:
        exclude_nodes(job, blamed_nodes(run.folder, loss.reason, int(os.environ.get("SLURM_NNODES", "1"))))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
