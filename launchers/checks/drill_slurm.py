"""`retain drill --launcher slurm`: the same kills on a cluster, sent by scancel."""

import time
from collections.abc import Mapping
from functools import partial

from retain.launchers.checks.drill import Killer, TrainTree
from retain.launchers.jobs.resources import as_executions, find_site, slurm_resources
from retain.launchers.jobs.status import with_jobs
from retain.launchers.jobs.submissions import submitted_job
from retain.launchers.jobs.submit import submit_runs
from retain.launchers.local.launcher import Watch
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import live_jobs, signal_job
from retain.results.store.runs import Store
from retain.results.store.state import ENDED, State
from retain.results.store.status import study_status
from retain.sweeps.tree.tree import Tree

POLL_S = 0.05
QUEUE_EVERY_S = 2.0
"""Seconds between two polls of the queue, one squeue each."""


def on_slurm(opened: OpenedStudy, site: str | None, watch: Watch) -> TrainTree:
    """Train as jobs in the study's partition; a signal goes to all processes of a job. site: the name of a profile."""
    chosen = find_site(site)
    executions = as_executions(slurm_resources(opened.tree, opened.file, opened.store, chosen and chosen[1]))

    def train_there(tree: Tree, store: Store, killer: Killer | None) -> Mapping[str, State]:
        register(tree, opened.file, opened.facts, store, executions)
        submit_runs(store, list(tree.stages))
        polled_at = time.monotonic()
        while True:
            states = store.states(tree.stages)
            watch(states)
            if all(state.state in ENDED for state in states.values()):
                return states
            if killer is not None:
                for key in tree.stages:
                    killer.poll(key, partial(_signal, store))
            if time.monotonic() - polled_at > QUEUE_EVERY_S:
                polled_at = time.monotonic()
                _submit_orphans(tree, store)
            time.sleep(POLL_S)

    return train_there


def _signal(store: Store, key: str, name: str) -> bool:
    job = submitted_job(store, store.run(key))
    if job is None:
        return False
    # scancel takes KILL of a whole job for its cancellation, so it goes to the step that trains.
    return signal_job(f"{job}.0" if name == "KILL" else job, name)


def _submit_orphans(tree: Tree, store: Store) -> None:
    """Submit again if nothing is queued any more, as a user would."""
    jobs = [job for key in tree.stages if (job := submitted_job(store, store.run(key)))]
    if live := live_jobs(jobs):
        return
    if any(row.state in ("planned", "running") for row in with_jobs(study_status(tree, store), store, live)):
        submit_runs(store, list(tree.stages))
