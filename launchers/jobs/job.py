"""What a SLURM job does: check that the runs it needs are done, do its own runs, and requeue itself when it is stopped.

A preemption, a time limit or an operator stops it by a signal, and the attempt then saves a checkpoint.

A job with a pack of runs does them one after the other. A requeued job skips the runs that have ended and resumes with the
first of the others.
"""

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from retain.launchers.jobs.backlog import submit_dead
from retain.launchers.jobs.data.further import submit_further_parts
from retain.launchers.jobs.dead_attempts import settle_dead_attempts
from retain.launchers.jobs.submissions import (
    is_to_do,
    read_backlog,
    read_submission,
    still_live,
    submission_folder,
    submitted_job,
)
from retain.launchers.kinds import kind_of
from retain.launchers.slurm.client import (
    NoAnswerError,
    exclude_nodes,
    is_stopped_early,
    live_jobs,
    own_job_is_cancelled,
    own_job_is_requeued,
    requeue_job,
    start_after,
)
from retain.launchers.stage.attempt import attempt_code
from retain.launchers.stage.failures import DAMAGE, DISK, ON_SLURM, classify, prepare_retry
from retain.launchers.stage.log import BUSY, FAILED, NO_ROOM, STOPPED, log_into, log_line
from retain.launchers.stage.rank_failures import blamed_nodes
from retain.launchers.stage.ranks import Ranks, free_port
from retain.launchers.stage.signals import ALL_SIGNALS, StopRequest
from retain.results.store.lease import try_lease
from retain.results.store.readiness import blocked_by, need_in_words, unfinished_needs
from retain.results.store.runs import Run, Store
from retain.results.store.state import UNENDED, State
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, MissingResourceError
from retain.sweeps.base.processes.names import slurm_job

WAIT_S = 60
"""Seconds that a job waits in the queue before it checks again whether the runs it needs are done."""
RENDEZVOUS_S = 300.0
"""How long the ranks of a job wait for rank 0."""
FRUITLESS = 2
"""Attempts in a row without progress after which a run has failed."""
UNSAVED = 4
"""The same for a kind that saves nothing: a preemption may have stopped one of them."""
EARLY = 12
"""The same for all kinds if the last attempt was stopped in the first half of its walltime, as by a preemption."""


class _Meeting(TypedDict):
    """What rank 0 of a job tells the other ranks: whether they train, and where they connect."""

    trains: bool
    address: str
    port: int


@dataclass(frozen=True)
class Requeue:
    """An order to requeue the job."""

    run: Run
    """The run that waits for the job."""
    hold_s: int = 0
    """Seconds before the job may start again."""
    avoided: frozenset[str] = frozenset()
    """Nodes on which the job must not start again."""
    after: tuple[str, ...] = ()
    """Ids of jobs that must end before it starts again."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended in this start of the job."""

    ending: str
    """A line for the log."""
    failed: bool = False
    requeue: Requeue | None = None
    busy: bool = False
    """Another process has the run: the job checks again once it has nothing else to do."""


def do_task(root: str, token: str) -> str:
    """Do the runs of this task; returns how the last one ended. Raises SystemExit if a run failed."""
    store = Store(Path(root))
    stop = StopRequest()
    stop.install()
    output = os.dup(1)
    keys = read_submission(store, token).own_keys()
    ranks = Ranks(int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"]))
    waiting = [run for key in keys if (run := store.run(key)).folder.is_dir()]
    busy: list[Run] = []
    runs = len(waiting)
    outcome = Outcome("the store no longer has its runs")
    # 1. One run after the other, until one of them sends the job back to the queue.
    while waiting:
        run = waiting[0]
        try:
            outcome = _do_run(store, token, run, ranks, stop, runs)
        except (OSError, MissingResourceError) as error:
            if classify(error) != DISK:
                raise
            log_line(f"rank {ranks.rank}: the disk is full: {error}")
            again = Requeue(run, ON_SLURM[DISK].wait_s) if ranks.is_first else None
            outcome = Outcome(str(error), failed=True, requeue=again)
        cancelled = stop.forget_cancel()
        busy += waiting[:1] if outcome.busy else []
        waiting = [run for run in waiting[1:] if is_to_do(run, token)]
        if waiting and stop.signal is not None and outcome.requeue is None:
            outcome = replace(outcome, requeue=Requeue(waiting[0]))
        # A failure that could not be recorded, in a store that cannot be written, would be met again and again.
        if outcome.requeue is not None or (outcome.failed and is_to_do(run, token)):
            break
        if waiting and (outcome.failed or cancelled):
            _restart_interpreter(output)
        gc.collect()
    # 2. Requeue the job if a run is left to do, unless somebody has cancelled the job with scancel.
    left = [run for run in busy if is_to_do(run, token)]
    if outcome.requeue or left:
        if stop.signal is not None and own_job_is_cancelled():
            _cancel_runs(store, token, keys)
            return "cancelled"
        _requeue(outcome.requeue or Requeue(left[0], WAIT_S))
    if outcome.failed:
        raise SystemExit(FAILED)
    return outcome.ending


def check_needs(store: Store, run: Run) -> tuple[str, str]:
    """What a job should do about a run, and why: done (do nothing), train, wait or skip."""
    own = run.state()
    if own.state in ("done", "cancelled", "failed"):
        return "done", f"the run is {own.state}"
    if why := blocked_by(store, run):
        return "skip", why
    for needed in unfinished_needs(store, run):
        what = need_in_words(needed)
        if (
            needed.state().state != "running"
            and needed.key not in read_backlog(store).keys
            and not _has_job(store, needed)
        ):
            return "skip", f"{what} and has no job; submit the study again"
        return "wait", what
    return "train", ""


def fruitless(state: State, resumes: bool, early: bool) -> str:
    """The reason to give up a run after too many stopped attempts in a row without progress; empty if there were fewer.

    Attempts before the last `retain retry` do not count. resumes: whether the kind of run saves its progress. early: whether
    the last attempt was stopped in the first half of its walltime.
    """
    ended = [attempt for attempt in state.counted_attempts if attempt.end is not None]
    most = EARLY if early else FRUITLESS if resumes else UNSAVED
    if len(ended) < most or (resumes and any(one.tokens > one.tokens_at_start for one in ended[-most:])):
        return ""
    what = (
        "attempts in a row were stopped before a step was saved"
        if resumes
        else "attempts in a row were stopped before their end"
    )
    cure = "retry on a partition or QOS with fewer preemptions" if early else "ask for a longer walltime"
    return f"{most} {what}; {cure}"


def _do_run(store: Store, token: str, run: Run, ranks: Ranks, stop: StopRequest, runs: int) -> Outcome:
    """Check what a run needs, and make an attempt if it may begin."""
    log_into(run.log)
    # Rank 0 decides for all: for a moment, a network file system may show another node older states of the needed runs.
    decision, why = "follow", "rank 0 decides"
    try:
        if ranks.is_first:
            decision, why = _decision(store, token, run)
        where = f"rank {ranks.rank} of {ranks.world}: job {slurm_job()} on {socket.gethostname()}"
        log_line(f"{where}: {decision}{f', {why}' if why else ''}")
        if decision == "train" and (after := submit_further_parts(store, run)) is not None:
            decision = "wait"
            return Outcome(decision, requeue=Requeue(run, WAIT_S, after=after))
    finally:
        connection = _rendezvous(submission_folder(store, token), ranks, decision == "train")
    if connection is not None:
        os.environ.update(connection)
        return _attempt(store, run, ranks, stop, runs)
    if decision == "damaged":
        return Outcome(why, failed=True)
    if decision == "wait":
        for needed in unfinished_needs(store, run):
            submit_dead(store, needed)
        return Outcome(decision, requeue=Requeue(run, WAIT_S))
    if decision == "skip":
        run.skip(why)
    return Outcome(decision)


def _decision(store: Store, token: str, run: Run) -> tuple[str, str]:
    """`check_needs` of a run that this job has to do: wait also if SLURM does not answer; if the store is damaged, the run
    fails, and the decision is damaged. Raises DamageError for a file that cannot be read here and now, but may be whole."""
    try:
        settle_dead_attempts(store, [run])
        decision, why = check_needs(store, run)
        if decision == "train" and run.state().submission != token:
            return "done", "the run was submitted again, to another job"
        return decision, why
    except NoAnswerError as away:
        return "wait", str(away)
    except DamageError as damage:  # in the files of the run, or of one that it needs
        if classify(damage) != DAMAGE:
            raise
        with contextlib.suppress(DamageError):  # its own state.json may be the damaged file
            run.fail(str(damage), DAMAGE)
        return "damaged", str(damage)


def _attempt(store: Store, run: Run, ranks: Ranks, stop: StopRequest, runs: int) -> Outcome:
    kind = kind_of(run.spec())
    importlib.import_module(kind.module)  # takes seconds, in which the run may be cancelled
    if ranks.world == 1 and run.state().state == "cancelled":
        return Outcome("cancelled")
    code, ending = attempt_code(store, run.key, ranks, stop, runs)
    log_line(f"rank {ranks.rank}: {ending}")
    if code in (FAILED, NO_ROOM):
        return Outcome(ending, failed=True, requeue=_after_failure(run, ranks, code) if ranks.is_first else None)
    if not ranks.is_first:
        return Outcome(ending)
    if code == STOPPED:
        state = run.state()
        if state.state == "cancelled":
            return Outcome(ending)
        why = "" if kind.may_idle else fruitless(state, kind.resumes, early=False)
        if why and is_stopped_early():
            why = fruitless(state, kind.resumes, early=True)
        if why:
            run.fail(why)
            return Outcome(ending, failed=True)
        return Outcome(ending, requeue=Requeue(run))
    return Outcome(ending, busy=code == BUSY)


def _after_failure(run: Run, ranks: Ranks, code: int) -> Requeue | None:
    """Requeue the job if the policy of the failure's class allows another attempt."""
    policy = prepare_retry(run, ON_SLURM)
    if code == NO_ROOM and run.state().state in UNENDED:  # the disk was too full to enter the failure
        policy = ON_SLURM[DISK]
    if policy is None:
        return None
    reason = run.state().reason or ""
    avoided = blamed_nodes(run.folder, reason, ranks.nodes) if policy.elsewhere else set()
    log_line(f"requeued after: {reason}")
    return Requeue(run, policy.wait_s, frozenset(avoided))


def _requeue(requeue: Requeue) -> None:
    """Requeue the job."""
    # 1. SLURM ends this process with TERM before scontrol has returned: ignore TERM to complete the steps below.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # 2. Mark the run as queued, unless another process has it.
    full_disk = contextlib.suppress(OSError, MissingResourceError)
    with full_disk, try_lease(requeue.run.lease) as held:
        if held:
            requeue.run.queue()
    # 3. Requeue the job, then keep it away from the nodes where it failed.
    job = slurm_job()
    assert job is not None
    try:
        requeue_job(job, requeue.hold_s)
    except MissingResourceError as error:
        if not own_job_is_requeued():
            log_line(f"job {job} cannot requeue itself ({error}); submit the study again, which resumes its runs")
            raise
        log_line(f"job {job} was requeued already")
    if requeue.avoided:
        exclude_nodes(job, requeue.avoided)
    if requeue.after:
        start_after(job, requeue.after)


def _cancel_runs(store: Store, token: str, keys: tuple[str, ...]) -> None:
    """Treat scancel like `retain cancel` for the runs that this job still had to do."""
    job = slurm_job()
    log_line(f"job {job} was cancelled with scancel: its runs are cancelled; retry them to resume them")
    for run in (run for key in keys if is_to_do(run := store.run(key), token)):
        with try_lease(run.lease) as held:
            if held:  # otherwise another process has the run
                run.cancel(f"by scancel of job {job}")


def _has_job(store: Store, run: Run) -> bool:
    job = submitted_job(store, run)
    return job is not None and bool(still_live(store, {run.key: job}, live_jobs([job])))


def _restart_interpreter(output: int) -> None:
    """Continue with the rest of a pack in a new interpreter.

    A failed run may have left a broken interpreter or GPU, and the signal of `retain cancel` ends the compile processes that
    torch keeps. output: the descriptor of the job's own output, which the logs of runs have replaced.
    """
    os.dup2(output, 1)
    os.dup2(output, 2)
    # A signal would end the new interpreter before it has installed its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    os.execv(sys.executable, sys.orig_argv)


def _rendezvous(folder: Path, ranks: Ranks, trains: bool) -> Mapping[str, str] | None:
    """The environment by which the ranks of this job connect, once rank 0 has told them; None if rank 0 does not train.

    trains: whether rank 0 does, which then finds a free port.
    """
    if ranks.world == 1:
        return {} if trains else None
    meeting = folder / f"meeting.{slurm_job()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
    if ranks.is_first:
        write_document(meeting, {"trains": trains, "address": socket.gethostname(), "port": free_port("")})
    deadline = time.monotonic() + RENDEZVOUS_S
    if not meeting.exists():
        log_line(f"rank {ranks.rank}: waits at most {RENDEZVOUS_S:.0f} s for rank 0 to write {meeting}")
    while not meeting.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{meeting}: rank 0 has not started within {RENDEZVOUS_S:g} s")
        time.sleep(0.2)
    told = read_document(meeting, _Meeting, "requeue the job")
    local_rank, node = int(os.environ["SLURM_LOCALID"]), int(os.environ["SLURM_NODEID"])
    return ranks.rendezvous(told["address"], told["port"], local_rank, node) if told["trains"] else None
