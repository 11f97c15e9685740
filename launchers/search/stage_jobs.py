"""Trains the stages of a search as SLURM jobs of their own, the same jobs that `retain submit` would submit.

The search keeps no list of jobs: the store has each stage's last submission, so a search that is started again finds the jobs
of its earlier attempts. The store says which stages have ended; SLURM is asked now and then whether their jobs still exist.
"""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from retain.launchers.jobs.branches import cancel_runs
from retain.launchers.jobs.dead_attempts import explain_deaths, is_dead, last_job, settle_death
from retain.launchers.jobs.resources import slurm_resources
from retain.launchers.jobs.submissions import (
    is_of,
    packed_with,
    read_backlog,
    read_submission,
    still_live,
    submission_lease,
    submitted_job,
    submitted_jobs,
    write_backlog,
)
from retain.launchers.jobs.submit import submit_leased
from retain.launchers.search.engine import Search
from retain.launchers.slurm.client import Job, cancel_jobs, live_jobs
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.log import log_line
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.results.store.state import ENDED, State
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.evaluation_runs import EVALUATE
from retain.sweeps.tree.tree import Tree

GIVEN_UP = "given up by its search"
"""Why a stage was cancelled that its search no longer wants, until it has stopped."""
STAGES_AT_ONCE = 8
"""The number of stages with a job at a time, if execution.parallel does not say."""
POLL_S = 1.0
"""Seconds between two polls of the store."""
ASK_S = 10.0
"""Seconds between two questions to SLURM, one squeue each."""
PATIENCE_S = 1800.0
"""How long SLURM may refuse or not answer before the search's job ends; the jobs of the stages continue meanwhile."""


def train_with_jobs(search: Search, site: Site | None, stop: StopRequest) -> None:
    """Train the stages of a search, each in a job of its own, until the search has finished.

    Raises AttemptStopped if a stop is requested (jobs continue, and the next attempt finds them); StudyError if a stage asks
    for more than SLURM allows; MissingResourceError if SLURM has not answered for too long.
    """
    search.parallel = search.searched.file.study.execution.parallel or STAGES_AT_ONCE
    jobs = StageJobs(search, site)
    while not search.finished() or jobs.leaving:
        if stop.signal:
            raise AttemptStopped(stop.signal)
        jobs.poll()
        search.watch()
        time.sleep(POLL_S)


class StageJobs:
    """The jobs of the stages that a search has handed out."""

    def __init__(self, search: Search, site: Site | None) -> None:
        self.search, self.site, self.store = search, site, search.store
        self.waiting: set[str] = set()
        """Stages to be submitted."""
        self.leaving: set[str] = set()
        """Stages that are given up, until their jobs have saved a checkpoint."""
        self.liveness = slurm_liveness()
        self.asked_at = -ASK_S
        self.answered_at = time.monotonic()
        self.complaint = ""
        """SLURM's last error."""
        # An earlier attempt may have died before it could cancel what it gave up. What was submitted later is the user's.
        self._give_up(
            key
            for key, state in search.states.items()
            if state.state in ("queued", "running") and not self._is_users(state)
        )

    def poll(self) -> None:
        """Handle stages that were given up or have ended, take ready ones, and keep a job in SLURM for each."""
        # 1. What the store says.
        self._give_up(self.search.training)
        for key in self.search.training - self.leaving:
            if self.store.run(key).state().state in ENDED:
                self._end(key)
        fresh = False
        while (stage := self.search.next_stage()) is not None:
            self.waiting.add(stage.key)
            fresh = True
        if not fresh and time.monotonic() < self.asked_at + ASK_S:
            return
        # 2. What SLURM says, which may not answer for a while.
        self.asked_at = time.monotonic()
        try:
            live = self._live_jobs()
            self._release_leaving(live)
            self._submit(self._to_submit(live))
            self.answered_at, self.complaint = time.monotonic(), ""
        except MissingResourceError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                log_line(self.complaint)
            if time.monotonic() > self.answered_at + PATIENCE_S:
                raise

    def _give_up(self, keys: Iterable[str]) -> None:
        """Cancel the jobs of those of these stages that the search has given up; once they have stopped, they are planned."""
        given_up = [key for key in keys if key not in self.leaving and self.search.given_up(key)]
        if not given_up:
            return
        self.leaving |= set(given_up)
        self.asked_at = -ASK_S
        try:
            cancel_runs(self.store, given_up, GIVEN_UP)
        except MissingResourceError as error:  # retried with the next squeue
            log_line(str(error))

    def _is_users(self, state: State) -> bool:
        """Whether a stage was submitted after the attempt of the search before this one had ended."""
        ends = [attempt.end for attempt in self.search.searched.run.state().attempts if attempt.end is not None]
        try:
            submitted = read_submission(self.store, state.submission).when if state.submission else None
        except FileNotFoundError:
            submitted = None
        return bool(ends) and submitted is not None and submitted > ends[-1]

    def _end(self, key: str) -> None:
        self.waiting.discard(key)
        self.leaving.discard(key)
        self.search.ended(key)

    def _live_jobs(self) -> dict[str, Job]:
        runs = [self.store.run(key) for key in self.search.training | self.leaving]
        jobs = {*submitted_jobs(self.store, runs).values(), *map(last_job, runs)}
        return live_jobs(job for job in jobs if job is not None)

    def _release_leaving(self, live: Mapping[str, Job]) -> None:
        """Plan the given-up stages that have stopped, so that a job that still has them skips them."""
        for key in sorted(self.leaving):
            run = self.store.run(key)
            job = submitted_job(self.store, run)
            if not run.is_running(self.liveness):
                run.retry()
                self._end(key)
            elif job is not None and job in live and is_of(run, live[job]) and not packed_with(self.store, [run])[key]:
                cancel_jobs([job])  # SLURM may not have answered earlier

    def _to_submit(self, live: Mapping[str, Job]) -> list[str]:
        """The stages that wait for a job, and those whose job SLURM holds because a node could not start it."""
        runs = [self.store.run(key) for key in sorted(self.search.training - self.leaving)]
        jobs = still_live(self.store, submitted_jobs(self.store, runs), live)
        lost = [run for run in runs if run.key not in jobs]
        # 1. Attempts whose job died without reporting.
        running = [run for run in lost if run.state().state == "running"]
        dead = [run for run in running if is_dead(self.store, run, live) or not run.is_running(self.liveness)]
        deaths = explain_deaths(self.store, dead)
        for run in dead:
            settle_death(run, deaths[run.key], self.liveness)
        # 2. Stages that are left without a job: the search decides whether to train them again.
        planned = {run.key for run in lost if run.state().state in ("planned", "queued")}
        for key in planned - self.waiting:
            self._end(key)
        self.waiting &= planned
        held = {key for key, job in jobs.items() if live[job].failed_to_start}
        return sorted(self.waiting | held)

    def _submit(self, keys: Collection[str]) -> None:
        """Submit these stages, siblings as one array. Those beyond the user's limit of jobs are tried again later."""
        if not keys:
            return
        self._ask_for_resources(keys)
        with submission_lease(self.store):
            result = submit_leased(self.store, list(keys))
            # No other job may submit them: the search may have given them up by then.
            waiting = read_backlog(self.store)
            if set(keys) & set(waiting.keys):
                others = tuple(key for key in waiting.keys if key not in keys)
                write_backlog(self.store, replace(waiting, keys=others))
        self.waiting &= set(result.deferred)
        for job in result.jobs:
            log_line(
                f"job {job.job_id}: {self.search.stages[job.keys[0]].stage} {' '.join(key[:8] for key in job.keys)}"
            )

    def _ask_for_resources(self, keys: Collection[str]) -> None:
        """Enter the resources of these stages: as study and site say, with a walltime from the speed of earlier runs."""
        whole = Tree("", self.search.stages, [], False)
        found = {stage.key: stage for key in keys for stage in whole.ancestors(key)}
        asked = {key: stage for key, stage in found.items() if stage.stage == EVALUATE}
        tree = replace(whole, stages={key: stage for key, stage in found.items() if key not in asked})
        resources = slurm_resources(tree, self.search.searched.file, self.store, self.site, evaluations=asked)
        for key in keys:
            spec = self.store.run(key).spec()
            execution = spec["execution"] | {"slurm": resources[key].execution.slurm.model_dump(mode="json")}
            self.store.register(key, spec | {"execution": execution})
