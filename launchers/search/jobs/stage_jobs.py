"""Training a search's stages as SLURM jobs of their own, which `retain submit` would have made the same.

The driver keeps no list of jobs: what a stage's last submission was is in the store, so that a driver that is started again
finds the jobs of an earlier one. Ends are read from the store; SLURM is asked now and then whether the jobs are still there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from retain.launchers.jobs.backlog import outside_job
from retain.launchers.jobs.branches import cancel_runs, plan_again
from retain.launchers.jobs.dead_attempts import explain_losses, is_lost, last_job, settle_loss
from retain.launchers.jobs.resources import slurm_resources
from retain.launchers.jobs.submissions import packed_with, read_deferral, submitted_job, write_deferral
from retain.launchers.jobs.submit import alone, submit_held
from retain.launchers.local.worker import say
from retain.launchers.search.engine import ENDED, Search
from retain.launchers.search.session import GIVEN_UP
from retain.launchers.slurm.client import Job, cancel_jobs, live_jobs
from retain.launchers.slurm.liveness import scheduler_witness
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Run
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.tree import Stage, Tree

LOOK_S = 1.0
"""Between two looks at the store."""
ASK_S = 10.0
"""Between two questions to SLURM, one squeue each."""
PATIENCE_S = 1800.0
"""How long SLURM may refuse or not answer before the driver ends; the stages' jobs go on meanwhile."""
MOST_STARTS = 3
"""Jobs of a stage that may go without having begun it; then its environment is to blame, and the stage has failed."""


def train_with_jobs(search: Search, site: Site | None, stop: StopRequest) -> None:
    """Train what a search hands out, each stage in a job of its own, until it has finished.

    Raises KeyboardInterrupt where a stop is asked for: jobs go on, and the next start takes them up; StudyError where a
    stage asks for more than SLURM allows; MissingResourceError where SLURM has not answered for too long.
    """
    jobs = StageJobs(search, site)
    jobs.give_up([key for key, state in search.states().items() if state.state in ("queued", "running")])
    while not (search.finished() and not jobs.leaving):
        if stop.signal:
            raise KeyboardInterrupt
        jobs.look()
        search.watch()
        time.sleep(LOOK_S)


class StageJobs:
    """The stages that a search has handed out, while their jobs are queued or run."""

    def __init__(self, search: Search, site: Site | None) -> None:
        self.search, self.site, self.store = search, site, search.store
        self.at_work: dict[str, Stage] = {}
        self.leaving: set[str] = set()
        """Given up; their jobs save their state."""
        self.starts: dict[str, tuple[int, int]] = {}
        """Attempts of a stage when it was last submitted, and how often it was with no more of them."""
        self.witness = scheduler_witness()
        self.asked_at = -ASK_S
        self.answered_at = time.monotonic()
        self.told = ""
        """SLURM's last complaint."""

    def look(self) -> None:
        """See what has ended, take what is ready, and keep a job with SLURM for each stage."""
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
            self._see_off(live)
            self._submit(self._without_job(live))
            self.answered_at, self.told = time.monotonic(), ""
        except MissingResourceError as error:
            if str(error) != self.told:
                self.told = str(error)
                say(self.told)
            if time.monotonic() > self.answered_at + PATIENCE_S:
                raise

    def give_up(self, keys: Sequence[str]) -> None:
        """Take those of these stages back from SLURM that the search has given up; once they have left, they are planned."""
        given_up = [key for key in keys if key not in self.leaving and self.search.given_up(key)]
        if not given_up:
            return
        self.leaving |= set(given_up)
        self.asked_at = -ASK_S
        try:
            cancel_runs(self.store, given_up, GIVEN_UP)
        except MissingResourceError as error:  # asked again with the next squeue
            say(str(error))

    def _take(self) -> list[str]:
        """What is ready and there is room for."""
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

    def _see_off(self, live: dict[str, Job]) -> None:
        """Plan again what trains no more, so that its job, where there still is one, passes it over."""
        for key in sorted(self.leaving):
            run = self.store.run(key)
            if run.is_running(self.witness):
                job = submitted_job(self.store, run)
                if job in live and not packed_with(self.store, run):
                    cancel_jobs([job])  # SLURM may not have answered before
                continue
            plan_again(self.store, [key])
            self.leaving.discard(key)
            if key in self.at_work and self.search.given_up(key):
                self._ended(key)

    def _without_job(self, live: dict[str, Job]) -> list[str]:
        """Stages at work that SLURM has no job of, or holds the job of as a node could not start it."""
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
        """Enter how attempts ended that died without a word."""
        running = [run for run in runs if run.state().state == "running"]
        lost = [run for run in running if is_lost(run, live) or not run.is_running(self.witness)]
        losses = explain_losses(self.store, lost)
        for run in lost:
            settle_loss(run, losses[run.key], self.witness)

    def _submit(self, keys: Sequence[str]) -> None:
        """Submit these stages, siblings as one array. What is beyond the user's limit of jobs is tried again later."""
        wanted = [key for key in keys if not self._never_begins(key)]
        if not wanted:
            return
        self._ask_for_resources(wanted)
        with outside_job(), alone(self.store):
            result = submit_held(self.store, wanted)
            # No other job is to submit them: the search may have given them up by then.
            waiting = read_deferral(self.store)
            if mine := set(wanted) & set(waiting.keys):
                others = tuple(key for key in waiting.keys if key not in mine)
                write_deferral(self.store, replace(waiting, keys=others))
        for job_id, submitted in result.jobs:
            say(f"job {job_id}: {self.at_work[submitted[0]].stage} {' '.join(key[:8] for key in submitted)}")
            for key in submitted:
                attempts = len(self.store.run(key).state().attempts)
                known, times = self.starts.get(key, (attempts, 0))
                self.starts[key] = (attempts, times + 1 if attempts == known else 1)

    def _never_begins(self, key: str) -> bool:
        """Whether jobs of a stage have gone too often without having begun it: it has failed then."""
        run = self.store.run(key)
        state = run.state()
        if self.starts.get(key) != (len(state.attempts), MOST_STARTS):
            return False
        told = self.store.root / "submissions" / (state.submission or "")
        reason = f"{MOST_STARTS} jobs ended before they began it; what they printed is in {told}"
        run.save_state(replace(state, state="failed", reason=reason))
        return True

    def _ask_for_resources(self, keys: Sequence[str]) -> None:
        """Enter what these stages ask of SLURM: what study and site say, with a walltime from the speed of earlier runs."""
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
