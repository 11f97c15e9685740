"""Attempts that ended without a word: found by the store and squeue, explained by SLURM's accounting and the logs."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from retain.launchers.jobs.submissions import submission_folder
from retain.launchers.slurm.client import accounted_states, live_jobs
from retain.launchers.stage.failures import NODE, ON_SLURM, classify_death, next_attempt, sentence
from retain.results.store.lease import LOOKS, SILENCE_S, Witness, read_owner, take_lease
from retain.results.store.runs import Run, State, Store
from retain.sweeps.base.processes import slurm_job

LOG_TAIL_BYTES = 1 << 16
LIFE = "Starting with JobEnvironment("
"""What submitit prints first; a job that has been requeued writes on in the same file."""
MOST_LOST = 3
"""Attempts in a row that nothing is to blame for may end without a word and without progress."""
NO_FAILURE = ("PREEMPTED", "TIMEOUT", "CANCELLED", "REQUEUED")
"""SLURM's words for ends that no run is to blame for."""
GONE_WAIT_S = SILENCE_S / LOOKS + 15
"""How long the lease of a lost run on another machine is watched: its job is gone, so a short silence is enough."""
LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Loss:
    """What is known of an attempt that ended without a word."""

    job_id: str | None
    slurm_state: str
    """As sacct writes it; empty where it does not know."""
    failure: str | None
    """Its class; None where nothing speaks of a failure."""
    by_hand: bool
    """Whether somebody cancelled the job."""

    @property
    def reason(self) -> str:
        """One line: class and cause."""
        job = f"job {self.job_id}" if self.job_id else "its process"
        cause = f"{job} ended without a word" + (f" ({self.slurm_state})" if self.slurm_state else "")
        return sentence(self.failure, cause) if self.failure else f"lost: {cause}"


def is_lost(run: Run, live: Collection[str]) -> bool:
    """Whether a run that is marked running has neither a living process nor one of the `live` jobs.

    A job that asks about its own run is a later life of the job that it finds there.
    """
    owner = read_owner(run.lease)
    if owner is not None and owner.job_id is not None and not owner.is_here():
        alive = owner.job_id in live and owner.job_id != slurm_job()
    else:
        alive = run.is_running()
    return not alive and run.state().state == "running"


def last_job(run: Run) -> str | None:
    """The job of the last attempt; None where it was none of SLURM's."""
    attempts = run.state().attempts
    return attempts[-1].job_id if attempts else None


def explain_losses(store: Store, runs: Sequence[Run], later: bool = False) -> dict[str, Loss]:
    """Why the last attempts of lost runs ended, by key: one call of sacct for all of them.

    later: a job that asks about its own run is a later life of the one that was lost, and not the end of its script.
    """
    jobs = {run.key: job for run in runs if (job := last_job(run)) is not None}
    states = accounted_states(jobs.values())
    return {run.key: _explain(store, run, jobs.get(run.key), states, later) for run in runs}


def _explain(store: Store, run: Run, job: str | None, states: Mapping[str, str], later: bool) -> Loss:
    slurm_state = states.get(job or "", "")
    since = 1 if later and job == slurm_job() else 0
    log = _since_attempt(_tail(run.log)) + (_job_log(store, run, job, since) if job else "")
    told = re.findall(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+ (?:DUE TO ([A-Z ]+) )?\*\*\*", log)
    gone = job is not None and job != slurm_job()
    by_hand = gone and (slurm_state.startswith("CANCELLED") or (not slurm_state and bool(told) and not told[-1]))
    failure = classify_death(None, slurm_state, log)
    if failure is None and not told and not slurm_state.startswith(NO_FAILURE):
        failure = NODE
    return Loss(job, slurm_state, failure, by_hand)


def settle_loss(run: Run, loss: Loss, witness: Witness | None = None, again: str = "planned") -> bool | None:
    """Enter how a lost attempt ended; whether the run may be tried again, None where its process may still live.

    Its state is `again`, or failed where its retries are used up, or cancelled where somebody cancelled its job.
    """
    lease = take_lease(run.lease, witness)
    if lease is None:
        return None
    try:
        if run.state().state != "running":
            return False
        if loss.by_hand:
            run.end_attempt("cancelled", "lost", loss.reason)
            return False
        run.end_attempt(again, "lost", loss.reason, loss.failure)
        state = run.state()
        if next_attempt(state, ON_SLURM) or (loss.failure is None and not _is_lost_again(state)):
            return True
        run.save_state(replace(state, state="failed"))
        return False
    finally:
        lease.release()


def _is_lost_again(state: State) -> bool:
    last = state.counted_attempts[-MOST_LOST:]
    start = last[-1].tokens_at_start
    return len(last) == MOST_LOST and all(it.cause == "lost" and it.tokens_at_start == start for it in last)


def settle_losses(store: Store, runs: Sequence[Run]) -> list[str]:
    """Enter the ends of all lost ones of these runs; returns the keys of those that may be tried again."""
    marked = [run for run in runs if run.state().state == "running"]
    if not marked:
        return []
    jobs = [job for run in marked if (job := last_job(run)) is not None]
    live = live_jobs(jobs)
    lost = [run for run in marked if is_lost(run, live)]
    losses = explain_losses(store, lost, later=True)
    again: list[str] = []
    witness = Witness(lambda owner: True)
    deadline = time.monotonic() + GONE_WAIT_S
    while lost:
        settled = {run.key: settle_loss(run, losses[run.key], witness) for run in lost}
        again += [key for key, answer in settled.items() if answer]
        lost = [run for run in lost if settled[run.key] is None]
        if not lost or time.monotonic() > deadline:
            break
        time.sleep(LOOK_EVERY_S)
    return again


def _since_attempt(text: str) -> str:
    """What follows the last line with which an attempt begins."""
    return re.split(r"rank 0 of \d+:", text)[-1]


def _job_log(store: Store, run: Run, job: str, since: int = 0) -> str:
    """The end of what SLURM and the job's script printed in one life of the job: the last, or that before `since` others."""
    token = run.state().submission
    if token is None:
        return ""
    lives = [_tail(path).split(LIFE) for path in submission_folder(store, token).glob(f"{job}_*log.out")]
    return "\n".join(texts[-1 - since] for texts in lives if len(texts) > since)


def _tail(path: Path) -> str:
    with suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return stream.read().decode(errors="replace")
    return ""
