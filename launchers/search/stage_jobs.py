"""Trains the stages of a search as SLURM jobs of their own, the same jobs that `retain submit` would submit.

The driver keeps no list of jobs: the store has each stage's last submission, so that a driver that is started again finds the
jobs of an earlier one. Ends are read from the store; SLURM is asked now and then whether the jobs still exist.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from retain.launchers.jobs.branches import cancel_runs, retry_runs
from retain.launchers.jobs.dead_attempts import explain_deaths, is_dead, last_job, settle_death
from retain.launchers.jobs.resources import slurm_resources
from retain.launchers.jobs.submissions import packed_with, read_backlog, submitted_job, write_backlog
from retain.launchers.jobs.submit import submission_lease, submit_leased
from retain.launchers.search.attempt import GIVEN_UP
from retain.launchers.search.engine import Search
from retain.launchers.slurm.client import Job, cancel_jobs, live_jobs
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.attempt import log_line
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Run
from retain.results.store.state import ENDED
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.tree import Stage, Tree

POLL_S = 1.0
"""Seconds between two polls of the store."""
ASK_S = 10.0
"""Seconds between two questions to SLURM, one squeue each."""
PATIENCE_S = 1800.0
"""How long SLURM may refuse or not answer before the driver ends; the jobs of the stages continue meanwhile."""
MOST_STARTS = 3
"""Jobs of a stage that may end before they begin it; then its environment is to blame, and the stage has failed."""


def train_with_jobs(search: Search, site: Site | None, stop: StopRequest) -> None:
    """Train the stages of a search, each in a job of its own, until the search has finished.

    Raises KeyboardInterrupt if a stop is requested (jobs continue, and the next start finds them); StudyError if a stage asks
    for more than SLURM allows; MissingResourceError if SLURM has not answered for too long.
    """
    jobs = StageJobs(search, site)
    jobs.give_up([key for key, state in search.states().items() if state.state in ("queued", "running")])
    while not (search.finished() and not jobs.leaving):
        if stop.signal:
            raise KeyboardInterrupt
        jobs.poll()
        search.watch()
        time.sleep(POLL_S)


class StageJobs:
    """The stages that a search has handed out, while their jobs are queued or running."""

    def __init__(self, search: Search, site: Site | None) -> None:
        self.search, self.site, self.store = search, site, search.store
        self.at_work: dict[str, Stage] = {}
        self.leaving: set[str] = set()
        """Stages that are given up; their jobs save a checkpoint."""
        self.starts: dict[str, tuple[int, int]] = {}
        """The attempts of a stage at its last submission, and the number of submissions at that number of attempts."""
        self.liveness = slurm_liveness()
        self.asked_at = -ASK_S
        self.answered_at = time.monotonic()
        self.complaint = ""
        """SLURM's last error."""

    def poll(self) -> None:
        """Handle stages that have ended, take ready ones, and keep a job in SLURM for each."""
        self.give_up(list(self.at_work))
        for key in list(self.at_work):
            if key not in self.leaving and self.store.run(key).state().state in ENDED:
                self._ended(key)
        fresh = self._take()
        if not fresh and time.monotonic() < self.asked_at + ASK_S:
            return
        self.asked_at = time.monotonic()
        try:
            live = self._live_jobs()
            self._release_leaving(live)
            self._submit(self._without_job(live))
            self.answered_at, self.complaint = time.monotonic(), ""
        except MissingResourceError as error:
            if str(error) != self.complaint:
                self.complaint = str(error)
                log_line(self.complaint)
            if time.monotonic() > self.answered_at + PATIENCE_S:
                raise

    def give_up(self, keys: Sequence[str]) -> None:
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

    def _take(self) -> list[str]:
        """Take the ready stages that there is room for."""
        fresh = []
        while (stage := self.search.next_stage()) is not None:
            self.at_work[stage.key] = stage
            fresh.append(stage.key)
        return fresh

    def _ended(self, key: str) -> None:
        self.at_work.pop(key, None)
        self.search.ended(key)

    def _live_jobs(self) -> dict[str, Job]:
        runs = [self.store.run(key) for key in {*self.at_work, *self.leaving}]
        jobs = [job for run in runs for job in (submitted_job(self.store, run), last_job(run)) if job is not None]
        return live_jobs(jobs)

    def _release_leaving(self, live: dict[str, Job]) -> None:
        """Plan the given-up stages that have stopped, so that a job that still has them skips them."""
        for key in sorted(self.leaving):
            run = self.store.run(key)
            if run.is_running(self.liveness):
                job = submitted_job(self.store, run)
                if job in live and not packed_with(self.store, run):
                    cancel_jobs([job])  # SLURM may not have answered earlier
                continue
            retry_runs(self.store, [key])
            self.leaving.discard(key)
            if key in self.at_work and self.search.given_up(key):
                self._ended(key)

    def _without_job(self, live: dict[str, Job]) -> list[str]:
        """Stages without a job in SLURM, or whose job SLURM holds because a node could not start it."""
        waiting = [self.store.run(key) for key in self.at_work if key not in self.leaving]
        jobs = {run.key: submitted_job(self.store, run) for run in waiting}
        self._settle([run for run in waiting if jobs[run.key] not in live], live)
        return [
            run.key
            for run in waiting
            if run.state().state in ("planned", "queued")
            and ((job := jobs[run.key]) not in live or live[job].failed_to_start)
        ]

    def _settle(self, runs: Sequence[Run], live: dict[str, Job]) -> None:
        """Enter the ends of attempts that died without reporting."""
        running = [run for run in runs if run.state().state == "running"]
        dead = [run for run in running if is_dead(run, live) or not run.is_running(self.liveness)]
        deaths = explain_deaths(self.store, dead)
        for run in dead:
            settle_death(run, deaths[run.key], self.liveness)

    def _submit(self, keys: Sequence[str]) -> None:
        """Submit these stages, siblings as one array. Those beyond the user's limit of jobs are tried again later."""
        wanted = [key for key in keys if not self._never_begins(key)]
        if not wanted:
            return
        self._ask_for_resources(wanted)
        with submission_lease(self.store):
            result = submit_leased(self.store, wanted)
            # No other job may submit them: the search may have given them up by then.
            waiting = read_backlog(self.store)
            if mine := set(wanted) & set(waiting.keys):
                others = tuple(key for key in waiting.keys if key not in mine)
                write_backlog(self.store, replace(waiting, keys=others))
        for job in result.jobs:
            log_line(f"job {job.job_id}: {self.at_work[job.keys[0]].stage} {' '.join(key[:8] for key in job.keys)}")
            for key in job.keys:
                attempts = len(self.store.run(key).state().attempts)
                known, times = self.starts.get(key, (attempts, 0))
                self.starts[key] = (attempts, times + 1 if attempts == known else 1)

    def _never_begins(self, key: str) -> bool:
        """Whether jobs of a stage ended too often before they began it; the stage has failed then."""
        run = self.store.run(key)
        state = run.state()
        if self.starts.get(key) != (len(state.attempts), MOST_STARTS):
            return False
        logs = self.store.root / "submissions" / (state.submission or "")
        return run.fail(f"{MOST_STARTS} jobs ended before they began the stage; their output is in {logs}")

    def _ask_for_resources(self, keys: Sequence[str]) -> None:
        """Enter the resources of these stages: as study and site say, with a walltime from the speed of earlier runs."""
        stages: dict[str, Stage] = {}
        for one in self.search.candidates:
            stages |= one.tree.stages if one.tree else {}
        tree = Tree("", {key: stages[key] for key in stages if key in _with_ancestors(keys, stages)}, [], False)
        resources = slurm_resources(tree, self.search.searched.file, self.store, self.site)
        for key in keys:
            spec = self.store.run(key).spec()
            execution = spec["execution"] | {"slurm": resources[key].execution.slurm.model_dump(mode="json")}
            self.store.register(key, spec | {"execution": execution})


def _with_ancestors(keys: Sequence[str], stages: Mapping[str, Stage]) -> set[str]:
    found: set[str] = set()
    for key in keys:
        above: str | None = key
        while above is not None:
            found.add(above)
            above = stages[above].parent
    return found
