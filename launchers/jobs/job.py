"""What a SLURM job does: look at the parent's run, train its own, and go back to the queue when it is stopped.

A job that has a pack of runs does so with one after the other. Where it goes back to the queue, that is for the run whose
turn it was and all after it: the next life of the job passes over those that have ended.
"""

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain.launchers.jobs.backlog import ENDED, deferred_keys, take_up_lost
from retain.launchers.jobs.branches import ended_above
from retain.launchers.jobs.dead_attempts import settle_losses
from retain.launchers.jobs.submissions import read_submission, submitted_job
from retain.launchers.local.worker import BUSY, FAILED, NO_ROOM, STOPPED, log_into, say, train_one
from retain.launchers.slurm.client import exclude_nodes, live_jobs, own_job_is_cancelled, requeue_job
from retain.launchers.stage.failures import DISK, ON_SLURM, prepare_retry
from retain.launchers.stage.rank_failures import blamed_nodes
from retain.launchers.stage.ranks import Group
from retain.launchers.stage.signals import HEARD, StopRequest
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, State, Store
from retain.sweeps.base.files import write_json
from retain.sweeps.base.processes import slurm_job

WAIT_S = 60
"""Seconds in the queue before a job looks again at a parent that has not finished."""
MEETING_S = 300.0
"""How long the ranks of a job wait for their chief."""
FRUITLESS = 2
"""Attempts in a row without progress, after which a run counts as failed."""


@dataclass(frozen=True)
class Queue:
    """That this job is to go back to the queue for a run: after so many seconds, and not on some nodes."""

    run: Run
    hold_s: int = 0
    avoided: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Turn:
    """What became of a run in this life of the job."""

    ending: str
    failed: bool = False
    queue: Queue | None = None
    busy: bool = False
    """Another process trains it: the job looks again once it has nothing else to do."""


@dataclass(frozen=True)
class RunStage:
    """One task of a submitted array; everything else it reads from the store."""

    store: str
    token: str

    def __call__(self) -> str:
        """Returns what became of its last run; submitit keeps it. Raises SystemExit where a run failed."""
        stop = StopRequest()
        stop.install()
        output = os.dup(1)
        store = Store(Path(self.store))
        keys = read_submission(store, self.token).own_keys()
        group = Group(int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"]))
        waiting = [run for key in keys if (run := store.run(key)).folder.is_dir()]
        busy: list[Run] = []
        turn = Turn("the store no longer has its runs")
        while waiting:
            turn = self._take_turn(store, waiting[0], group, stop)
            cancelled = stop.forget_cancel()
            busy += waiting[:1] if turn.busy else []
            waiting = [run for run in waiting[1:] if self._is_to_train(run)]
            if waiting and stop.signal is not None and turn.queue is None:
                turn = replace(turn, queue=Queue(waiting[0]))
            if turn.queue is not None:
                break
            if waiting and (turn.failed or cancelled):
                _start_anew(output)
            gc.collect()
        left = [run for run in busy if self._is_to_train(run)]
        if turn.queue or left:
            if stop.signal is not None and own_job_is_cancelled():
                self._cancel(store, keys)
                return "cancelled"
            _requeue(turn.queue or Queue(left[0], WAIT_S))
        if turn.failed:
            raise SystemExit(FAILED)
        return turn.ending

    def _cancel(self, store: Store, keys: Sequence[str]) -> None:
        """What `retain cancel` would have said of the runs that this job still had to train."""
        job = slurm_job()
        say(f"job {job} was cancelled by scancel: its runs are cancelled, retain retry takes them up again")
        for run in filter(self._is_to_train, map(store.run, keys)):
            # What another process trains is not ours to say.
            if lease := take_lease(run.lease):
                run.save_state(replace(run.state(), state="cancelled", reason=f"by scancel of job {job}"))
                lease.release()

    def _is_to_train(self, run: Run) -> bool:
        """Whether a run of the pack is left to train, and has not been given to another job meanwhile."""
        state = run.state()
        return state.state not in ENDED and state.submission == self.token

    def _take_turn(self, store: Store, run: Run, group: Group, stop: StopRequest) -> Turn:
        """One run, as far as it comes."""
        log_into(run.log)
        if group.chief:
            settle_losses(store, [run])
        decision, why = look_at_parent(store, run)
        if decision == "train" and run.state().submission != self.token:
            decision, why = "done", "it was given to another job"
        say(
            f"rank {group.rank} of {group.world}: job {slurm_job()} on {socket.gethostname()}: "
            f"{decision}{f', {why}' if why else ''}"
        )
        if decision == "train":
            os.environ.update(_rendezvous(store.root / "submissions" / self.token, group))
            return _train(store, run, group, stop)
        if group.chief:
            if decision == "wait":
                take_up_lost(store, run.spec()["parent"])
                return Turn(decision, queue=Queue(run, WAIT_S))
            if decision == "skip":
                run.save_state(replace(run.state(), state="skipped", reason=why))
        return Turn(decision)


def look_at_parent(store: Store, run: Run) -> tuple[str, str]:
    """done, train, wait or skip, and why; a job's first question."""
    own = run.state()
    if own.state in ("done", "cancelled", "failed"):
        return "done", f"the run is {own.state}"
    parent_key = run.spec()["parent"]
    if parent_key is None:
        return "train", ""
    parent = store.run(parent_key)
    state = parent.state()
    if state.state == "done":
        return "train", ""
    if why := ended_above(store, run):
        return "skip", why
    kind = parent.spec()["stage"]
    if state.state == "running" or parent_key in deferred_keys(store) or _is_queued(store, parent):
        return "wait", f"{kind} {parent_key[:8]} is {state.state}"
    return "skip", f"{kind} {parent_key[:8]} is {state.state} and has no job; retain submit takes it up again"


def is_fruitless(state: State) -> bool:
    """Whether the last attempts since any `retain retry` were stopped without coming further than those before."""
    ended = [attempt for attempt in state.counted_attempts if attempt.end is not None]
    if len(ended) < FRUITLESS:
        return False
    return all(attempt.tokens <= attempt.tokens_at_start for attempt in ended[-FRUITLESS:])


def _train(store: Store, run: Run, group: Group, stop: StopRequest) -> Turn:
    import retain.launchers.stage.training.run  # noqa: F401  # takes seconds, in which the run may be cancelled

    if group.world == 1 and run.state().state == "cancelled":
        return Turn("cancelled")
    code, ending = train_one(store, run.key, group, stop)
    say(f"rank {group.rank}: {ending}")
    if code in (FAILED, NO_ROOM):
        return Turn(ending, failed=True, queue=_after_failure(run, group, code) if group.chief else None)
    if not group.chief:
        return Turn(ending)
    if code == STOPPED:
        state = run.state()
        if state.state == "cancelled":
            return Turn(ending)
        if is_fruitless(state):
            reason = f"{FRUITLESS} attempts in a row were stopped before a step was saved; ask for a longer walltime"
            run.save_state(replace(state, state="failed", reason=reason))
            return Turn(ending, failed=True)
        return Turn(ending, queue=Queue(run))
    return Turn(ending, busy=code == BUSY)


def _after_failure(run: Run, group: Group, code: int) -> Queue | None:
    """Back into the queue where the failure's class allows another attempt."""
    policy = prepare_retry(run, ON_SLURM)
    if code == NO_ROOM and run.state().state == "running":  # the disk has not even room to say so
        policy = ON_SLURM[DISK]
    if policy is None:
        return None
    avoided = blamed_nodes(run.folder, run.state().reason or "", group.nodes) if policy.elsewhere else set()
    say(f"back to the queue after: {run.state().reason}")
    return Queue(run, policy.wait_s, frozenset(avoided))


def _requeue(queue: Queue) -> None:
    """Back into the queue; SLURM ends this process on the way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a full disk
        # What another process trains is not ours to say.
        if lease := take_lease(queue.run.lease):
            state = queue.run.state()
            if state.state not in ("done", "cancelled"):
                queue.run.save_state(replace(state, state="queued"))
            lease.release()
    job = slurm_job()
    assert job is not None
    requeue_job(job, queue.hold_s)
    if queue.avoided:
        exclude_nodes(job, queue.avoided)


def _start_anew(output: int) -> None:
    """Go on with the rest of a pack in a fresh interpreter: what failed may have left a broken one, or a broken GPU, and the
    signal of `retain cancel` ends the compilers that torch keeps beside it.

    output: of the job, before it went into the logs of runs.
    """
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Until the new interpreter listens: they would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    os.execv(sys.executable, sys.orig_argv)


def _rendezvous(folder: Path, group: Group) -> Mapping[str, str]:
    """Where the ranks of this job meet: an address and a port that the chief has found free and written down."""
    if group.world == 1:
        return {}
    meeting = folder / f"meeting.{slurm_job()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
    if group.chief:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        write_json(meeting, {"address": socket.gethostname(), "port": port})
    deadline = time.monotonic() + MEETING_S
    while not meeting.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{meeting}: the first rank has not begun in {MEETING_S:g} s")
        time.sleep(0.2)
    place: dict[str, Any] = json.loads(meeting.read_text())
    local = int(os.environ["SLURM_LOCALID"])
    return {
        "MASTER_ADDR": place["address"],
        "MASTER_PORT": str(place["port"]),
        "WORLD_SIZE": str(group.world),
        "RANK": str(group.rank),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(group.world // group.nodes),
        "GROUP_RANK": os.environ["SLURM_NODEID"],
    }


def _is_queued(store: Store, run: Run) -> bool:
    job = submitted_job(store, run)
    return job is not None and job in live_jobs([job])
