"""The last command of a job's script: requeue the job if its processes died without reporting, and submit the backlog.

python -m retain.launchers.jobs.epilogue STORE TOKEN [CODE]

CODE is the exit code of the script's setup lines, if those have ended it.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retain.launchers.jobs.backlog import submit_backlog
from retain.launchers.jobs.dead_attempts import explain_deaths, settle_death
from retain.launchers.jobs.submissions import is_to_do, read_submission
from retain.launchers.slurm.client import asked_patiently, exclude_nodes, live_jobs, requeue_job
from retain.launchers.stage.failures import DISK, NODE, ON_SLURM, classify, next_attempt
from retain.launchers.stage.on_end import tell_ended
from retain.launchers.stage.rank_failures import blamed_nodes
from retain.results.store.lease import try_lease
from retain.results.store.readiness import written_state
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.base.notices import notice
from retain.sweeps.base.processes.names import slurm_job


def main(arguments: list[str]) -> int:
    """Settle the job's runs; returns the exit code of the script, which becomes that of the job."""
    root, token, *setup = arguments
    try:
        return _settle(Store(Path(root)), token, setup)
    except (OSError, MissingResourceError) as error:
        job = slurm_job()
        if classify(error) != DISK or job is None:
            raise
        notice(f"{error}; job {job} waits until there is room")
        requeue_job(job, ON_SLURM[DISK].wait_s)
        return 1


def _settle(store: Store, token: str, setup: Sequence[str]) -> int:
    """`main`. Raises OSError or MissingResourceError if the disk has no room for how an attempt ended, or for a submission."""
    runs = [run for key in read_submission(store, token).own_keys() if (run := store.run(key)).folder.is_dir()]

    # 1. Find the run that the job was doing when it died. None: it did not die.
    states = {run.key: written_state(run) for run in runs}
    dead = next(
        (run for run in runs if (states[run.key].state, states[run.key].submission) == ("running", token)), None
    )
    dead = dead or _next_if_died_early(runs, token)
    if dead is None:
        if not _has_more_to_do(runs, token):
            _end(store, runs)
        return 0

    # 2. Record how its attempt ended; the run may have used up its retries.
    death = explain_deaths(store, [dead])[dead.key]
    if setup:
        cause = f"ended in its setup lines (execution.slurm.setup) with code {setup[0]}"
        death = replace(death, failure=death.failure or NODE, cause=cause)
    again = settle_death(dead, death, queued=True)
    if again is None:  # another process has the run
        return 0
    if not again and not _has_more_to_do(runs, token):
        _end(store, runs)
        return 1

    # 3. Requeue the job: for another attempt, or for the rest of its pack.
    job = slurm_job()
    assert job is not None
    requeue_job(job)
    policy = next_attempt(dead.state(), ON_SLURM)
    if policy is not None and policy.elsewhere:
        exclude_nodes(job, blamed_nodes(dead.folder, death.reason, int(os.environ.get("SLURM_NNODES", "1"))))
    return 1


def _end(store: Store, runs: Sequence[Run]) -> None:
    """What the end of a job that has no run left to do may cause: the user's own command, and submissions."""
    tell_ended(store, [run.key for run in runs], ON_SLURM)
    submit_backlog(store)  # last: it may requeue this job, which ends this process


def _has_more_to_do(runs: Sequence[Run], token: str) -> bool:
    return any(is_to_do(run, token) for run in runs)


def _next_if_died_early(runs: Sequence[Run], token: str) -> Run | None:
    """The next run of a job that died before it began an attempt; None for any other job.

    The attempt is begun here, so that it can be settled as dead.
    """
    job, run = slurm_job(), next((run for run in runs if is_to_do(run, token)), None)
    if job is None or run is None:
        return None
    try:
        found = asked_patiently(lambda: live_jobs([job])).get(job)
    except MissingResourceError:
        return None
    # The script of a job that has requeued itself ends here too: that job no longer runs.
    if found is None or found.state != "RUNNING":
        return None
    with try_lease(run.lease) as held:
        if held:
            run.begin(os.getpid(), run.state().progress.tokens)
        return run if held else None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RetainError as error:
        sys.exit(f"retain: {error}")
