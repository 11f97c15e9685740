"""What a SLURM job does: look at the parent's run, train its own, and go back to the queue when it is stopped."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launchers.branches import ended_above
from launchers.causes import blamed_nodes
from launchers.deferred import deferred_keys, take_up_lost
from launchers.failures import DISK, ON_SLURM, prepare_retry
from launchers.lost import settle_losses
from launchers.place import Group
from launchers.signals import StopRequest
from launchers.slurm import exclude_nodes, live_jobs, requeue_job
from launchers.submissions import read_submission, submitted_job
from launchers.worker import BUSY, FAILED, NO_ROOM, STOPPED, log_into, say, train_one
from results.store import Run, State, Store
from sweeps.atomic import write_json
from sweeps.processes import slurm_job

WAIT_S = 60
"""Seconds in the queue before a job looks again at a parent that has not finished."""
MEETING_S = 300.0
"""How long the ranks of a job wait for their chief."""
FRUITLESS = 2
"""Attempts in a row without progress, after which a run counts as failed."""


@dataclass(frozen=True)
class RunStage:
    """One task of a submitted array; everything else it reads from the store."""

    store: str
    token: str

    def __call__(self) -> str:
        """Returns what became of it; submitit keeps it. Raises SystemExit where the run failed."""
        stop = StopRequest()
        stop.install()
        store = Store(Path(self.store))
        submission = read_submission(store, self.token)
        run = store.run(submission.keys[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
        rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        group = Group(rank, world, nodes=int(os.environ["SLURM_NNODES"]))
        log_into(run.log)
        if group.chief:
            settle_losses(store, [run])
        decision, why = look_at_parent(store, run)
        say(
            f"rank {rank} of {world}: job {slurm_job()} on {socket.gethostname()}: {decision}{f', {why}' if why else ''}"
        )
        if decision == "train":
            os.environ.update(_rendezvous(store.root / "submissions" / self.token, group))
            return _train(store, run, group, stop)
        if group.chief:
            if decision == "wait":
                take_up_lost(store, run.spec()["parent"])
                _requeue(run, WAIT_S)
            elif decision == "skip":
                run.save_state(replace(run.state(), state="skipped", reason=why))
        return decision


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


def _train(store: Store, run: Run, group: Group, stop: StopRequest) -> str:
    code, ending = train_one(store, run.key, group, stop)
    say(f"rank {group.rank}: {ending}")
    if code in (FAILED, NO_ROOM):
        if group.chief:
            _after_failure(run, group, code)
        raise SystemExit(FAILED)
    if not group.chief:
        return ending
    if code == STOPPED:
        state = run.state()
        if state.state == "cancelled":
            return ending
        if is_fruitless(state):
            reason = f"{FRUITLESS} attempts in a row were stopped before a step was saved; ask for a longer walltime"
            run.save_state(replace(state, state="failed", reason=reason))
            raise SystemExit(FAILED)
        _requeue(run, 0)
    elif code == BUSY:
        _requeue(run, WAIT_S)
    return ending


def _after_failure(run: Run, group: Group, code: int) -> None:
    """Back into the queue where the failure's class allows another attempt."""
    policy = prepare_retry(run, ON_SLURM)
    if code == NO_ROOM and run.state().state == "running":  # the disk has not even room to say so
        policy = ON_SLURM[DISK]
    if policy is None:
        return
    avoided = blamed_nodes(run.folder, run.state().reason or "", group.nodes) if policy.elsewhere else set()
    say(f"back to the queue after: {run.state().reason}")
    _requeue(run, policy.wait_s, avoided)


def _requeue(run: Run, hold_s: int, avoided: Collection[str] = ()) -> None:
    """Back into the queue; SLURM ends this process on the way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    state = run.state()
    with contextlib.suppress(OSError):  # a full disk
        if state.state not in ("done", "cancelled"):
            run.save_state(replace(state, state="queued"))
    job = slurm_job()
    assert job is not None
    requeue_job(job, hold_s)
    if avoided:
        exclude_nodes(job, avoided)


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
