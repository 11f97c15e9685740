"""Attempts that died without reporting: found by lease and squeue, explained by SLURM's accounting and the logs.

A job that was requeued keeps its id. While it runs again, its own id in a run's state stands for its earlier start, which
has ended.
"""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retain.launchers.jobs.submissions import first_log, is_of, job_logs, submitted_job
from retain.launchers.slurm.client import Job, accounted_states, live_jobs
from retain.launchers.stage.failures import (
    INTERRUPTED,
    NODE,
    ON_SLURM,
    causes_of_end,
    classify_death,
    next_attempt,
    sentence,
)
from retain.results.store.lease import POLLS, SILENCE_S, LivenessChecker, held_by, read_owner, try_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.sweeps.base.notices import Waiting
from retain.sweeps.base.processes.names import slurm_job
from retain.sweeps.base.units import counted

LOG_TAIL_BYTES = 1 << 16
FIRST_LINE = "Starting with JobEnvironment("
"""What submitit prints first at each start of a job; a requeued job appends to the same file."""
MOST_DEATHS = 3
"""Deaths in a row without progress and without a known cause, after which a run has failed."""
GONE_WAIT_S = SILENCE_S / POLLS + 15
"""How long to watch the lease of a dead run on another machine. A short silence is enough, as its job is gone."""
POLL_EVERY_S = 5.0


@dataclass(frozen=True)
class Death:
    """What is known of an attempt that died without reporting."""

    job_id: str | None
    slurm_state: str
    """As sacct prints it; empty if sacct does not know."""
    failure: str | None
    """The failure class; None if there is no sign of a failure."""
    cancelled: bool
    """Whether somebody cancelled the job with scancel."""
    log: Path | None = None
    """What the job printed."""
    cause: str = ""
    """What happened, if that is known."""

    @property
    def reason(self) -> str:
        """One line with failure class and cause."""
        job = f"job {self.job_id}" if self.job_id else "its process"
        cause = f"{job} {self.cause or 'died without reporting'}" + (
            f" ({self.slurm_state})" if self.slurm_state else ""
        )
        cause += f"; its log is {self.log}" if self.log else ""
        return sentence(self.failure, cause) if self.failure else f"lost: {cause}"


def is_dead(store: Store, run: Run, live: Mapping[str, Job]) -> bool:
    """Whether a run that is marked as running has neither a living process nor one of the `live` jobs."""
    owner = read_owner(run.lease)
    if owner is not None and owner.job_id is not None and not owner.is_here():
        job = live.get(owner.job_id) if owner.job_id != slurm_job() else None
        # Another job than that of the run's submission may train it too, but not one that only has the id of that job.
        alive = job is not None and (is_of(run, job) or owner.job_id != submitted_job(store, run))
    else:
        alive = run.is_running()
    return not alive and run.state().state == "running"


def last_job(run: Run) -> str | None:
    """The SLURM job of the last attempt; None if it had none."""
    attempts = run.state().attempts
    return attempts[-1].job_id if attempts else None


def explain_deaths(store: Store, runs: Sequence[Run], later: bool = False) -> dict[str, Death]:
    """Why the last attempts of dead runs ended, by key: one call of sacct for all of them.

    later: whether this process's own job was requeued since its run died; False in the epilogue of the start that died.
    """
    jobs = {run.key: job for run in runs if (job := last_job(run)) is not None}
    states = accounted_states(jobs.values())
    return {run.key: _explain(store, run, jobs.get(run.key), states, later) for run in runs}


def settle_death(run: Run, death: Death, liveness: LivenessChecker | None = None, queued: bool = False) -> bool | None:
    """Record how a dead attempt ended. Returns whether the run may be tried again; None if its process may still be alive.

    The run becomes planned (queued, if `queued`); failed if its retries are used up; cancelled if somebody cancelled its job.
    """
    with try_lease(run.lease, liveness) as held:
        if not held:
            return None
        if run.state().state != "running":
            return False
        if death.cancelled:
            run.cancel(death.reason, cause="lost")
            return False
        run.stop("lost", death.reason, death.failure, queued)
        state = run.state()
        if next_attempt(state, ON_SLURM) or (death.failure is None and not _died_too_often(state)):
            return True
        run.fail(death.reason)
        return False


def settle_dead_attempts(store: Store, runs: Sequence[Run]) -> list[str]:
    """Settle the dead ones among these runs; returns the keys of those that may be tried again."""
    # 1. Find the runs that are marked as running without a process or a job, and why they died.
    marked = [run for run in runs if run.state().state == "running"]
    if not marked:
        return []
    live = live_jobs([job for run in marked if (job := last_job(run)) is not None])
    dead = [run for run in marked if is_dead(store, run, live)]
    deaths = explain_deaths(store, dead, later=True)
    # 2. Settle them, some only after their leases have been silent for long enough.
    again: list[str] = []
    liveness = LivenessChecker(lambda owner: True)
    deadline = time.monotonic() + GONE_WAIT_S
    waiting = Waiting(f"making sure that dead attempts are silent, for up to {GONE_WAIT_S:.0f} s")
    while dead:
        settled = {run.key: settle_death(run, deaths[run.key], liveness) for run in dead}
        again += [key for key, answer in settled.items() if answer]
        dead = [run for run in dead if settled[run.key] is None]
        if not dead or time.monotonic() > deadline:
            break
        waiting.say(f"{counted(len(dead), 'run')}, first {dead[0].key[:8]}: {held_by(dead[0].lease)}")
        time.sleep(POLL_EVERY_S)
    return again


def _explain(store: Store, run: Run, job: str | None, states: Mapping[str, str], later: bool) -> Death:
    slurm_state = states.get(job or "", "")
    own = job is not None and job == slurm_job()
    log = _since_attempt(_tail(run.log)) + (_job_log(store, run, job, 1 if later and own else 0) if job else "")
    causes = causes_of_end(log)
    # By its user, or by an operator: a controller that has lost its state leaves jobs that are CANCELLED by nobody.
    by_scancel = slurm_state.startswith("CANCELLED by") or (not slurm_state and causes[-1:] == [""])
    failure = classify_death(None, slurm_state, log)
    if failure is None and not causes and not slurm_state.startswith(INTERRUPTED):
        failure = NODE
    log_file = first_log(store, run, job) if job else None
    return Death(job, slurm_state, failure, job is not None and not own and by_scancel, log_file)


def _died_too_often(state: State) -> bool:
    last = state.counted_attempts[-MOST_DEATHS:]
    start = last[-1].tokens_at_start
    return len(last) == MOST_DEATHS and all(one.cause == "lost" and one.tokens_at_start == start for one in last)


def _since_attempt(text: str) -> str:
    """The part of a run's log that its last attempt wrote."""
    return re.split(r"rank 0 of \d+:", text)[-1]


def _job_log(store: Store, run: Run, job: str, earlier: int) -> str:
    """The end of what a job printed in its last start, or in the start that many earlier."""
    logs = [_tail(path).split(FIRST_LINE) for path in job_logs(store, run, job)]
    return "\n".join(starts[-1 - earlier] for starts in logs if len(starts) > earlier)


def _tail(path: Path) -> str:
    with suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return stream.read().decode(errors="replace")
    return ""
