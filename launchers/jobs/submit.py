"""`retain submit`: hand what a store lacks to SLURM, through submitit, each stage exactly once."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.launchers.jobs.branches import ENDED_BADLY, settle_descendants
from retain.launchers.jobs.code_snapshot import snapshot_code
from retain.launchers.jobs.dead_attempts import settle_losses
from retain.launchers.jobs.job import RunStage
from retain.launchers.jobs.resources import UNMEASURED_MINUTES
from retain.launchers.jobs.sbatch import Request, executor, hand_over
from retain.launchers.jobs.submissions import (
    Submission,
    new_submission,
    read_deferral,
    submission_folder,
    submitted_jobs,
    unanswered,
    write_deferral,
    write_submission,
)
from retain.launchers.slurm.client import Limits, live_jobs, read_limits, release_jobs
from retain.launchers.slurm.liveness import scheduler_witness
from retain.results.store.lease import SILENCE_S, read_owner, take_lease
from retain.results.store.runs import Store
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.execution import Slurm

if TYPE_CHECKING:
    import submitit

SUBMITTER_WAIT_S = 120.0
"""How long one submitter waits for another of this machine; for one elsewhere, until its silence says that it is dead."""


class QueueFullError(MissingResourceError):
    """A job more than the user may have."""


@dataclass(frozen=True)
class Family:
    """Stages of one kind below one parent: one array of jobs."""

    stage: str
    parent: str | None
    keys: tuple[str, ...]
    execution: Mapping[str, Any]

    @property
    def pack(self) -> int:
        """Stages that one job trains, one after the other."""
        return int(self.execution.get("pack", 1))  # a run that was registered before there were packs


@dataclass(frozen=True)
class Submitted:
    """What one call of `submit` did."""

    jobs: Sequence[tuple[str, Sequence[str]]]
    """Job ids with the stage keys of their tasks."""
    adopted: Sequence[str]
    """Ids of jobs whose sbatch had not answered earlier, found again."""
    released: Sequence[str]
    """Ids of jobs that SLURM held because a node could not start them."""
    queued_already: int
    done_already: int
    failed: Sequence[str]
    """Left alone: `retain retry` takes them up again."""
    deferred: Sequence[str]
    """Beyond the user's limit of jobs: submitted by the jobs that end."""
    limit: int | None
    """Of the user's jobs."""


def submit_runs(store: Store, keys: Sequence[str]) -> Submitted:
    """Submit those of these registered runs, parents first, that are neither done nor in SLURM's hands.

    Raises MissingResourceError where SLURM does not answer, or another submitter holds the store for too long.
    """
    with alone(store):
        return submit_held(store, keys)


def submit_held(store: Store, keys: Sequence[str]) -> Submitted:
    """`submit_runs` for a submitter that holds the store alone already."""
    adopted = settle_unanswered(store)
    runs = {key: store.run(key) for key in keys}
    settle_losses(store, list(runs.values()))
    parents = {str(parent) for run in runs.values() if (parent := run.spec()["parent"])}
    recorded = submitted_jobs(store, (store.run(key) for key in {*keys, *parents}))
    live = live_jobs(recorded.values())
    job_of = {key: job for key, job in recorded.items() if job in live}
    released = release_jobs([job for job in job_of.values() if live[job].failed_to_start])
    settle_descendants(store, [key for key in keys if key not in job_of])
    states = {key: run.state() for key, run in runs.items()}
    failed = [key for key, state in states.items() if state.state in ENDED_BADLY]
    wanted = [
        key
        for key, state in states.items()
        if state.state in ("planned", "queued", "running") and key not in job_of and not runs[key].is_running()
    ]
    limits = read_limits()
    room = None if limits.jobs is None else limits.jobs - sum(job.counts for job in live_jobs().values())
    jobs, deferred = _submit_families(store, families(store, wanted), job_of, limits, room)
    waiting = read_deferral(store)
    others = [key for key in waiting.keys if key not in runs]
    if deferred or waiting.keys:
        late = set(deferred)
        write_deferral(store, replace(waiting, keys=(*others, *(key for key in keys if key in late))))
    return Submitted(
        jobs=jobs,
        adopted=adopted,
        released=released,
        queued_already=len(keys) - len(wanted) - len(failed) - sum(state.state == "done" for state in states.values()),
        done_already=sum(state.state == "done" for state in states.values()),
        failed=failed,
        deferred=deferred,
        limit=limits.jobs,
    )


def families(store: Store, keys: Sequence[str]) -> list[Family]:
    """Stages grouped by kind, parent and resources, in the order of the first of each."""
    grouped: dict[tuple[str, str | None, str], list[str]] = {}
    executions: dict[tuple[str, str | None, str], Mapping[str, Any]] = {}
    for key in keys:
        spec = store.run(key).spec()
        group = (spec["stage"], spec["parent"], repr(sorted(spec["execution"].items(), key=str)))
        grouped.setdefault(group, []).append(key)
        executions[group] = spec["execution"]
    return [Family(group[0], group[1], tuple(found), executions[group]) for group, found in grouped.items()]


def settle_unanswered(store: Store) -> list[str]:
    """Find the jobs of submissions whose sbatch never answered, and adopt them; forget those that SLURM knows not.

    Returns the ids of the adopted. For a submitter that holds the store alone.
    """
    adopted = []
    for submission in unanswered(store):
        found = live_jobs(name=submission.name)
        if found:
            job_id = next(iter(found)).split("_")[0]
            _hand_over(store, submission, job_id)
            write_submission(store, replace(submission, job_id=job_id))
            adopted.append(job_id)
        else:
            for key in submission.keys:
                run = store.run(key)
                state = run.state()
                if state.submission == submission.token and state.state == "queued":
                    run.save_state(replace(state, state="planned", submission=None))
            (submission_folder(store, submission.token) / "intent.json").unlink()
    return adopted


def sbatch_script(store: Store, family: Family, dependency: str | None, code: Path) -> str:
    """The script that a family would be submitted with."""
    submission = Submission("dry-run", family.keys, time.time(), pack=family.pack)
    submitter = _executor(store, submission, family, dependency, code)
    if len(submission.tasks) > 1:
        submitter.parameters["map_count"] = len(submission.tasks)
    return str(submitter._make_submission_file_text(submitter._submitit_command_str, "dry-run"))


def _submit_families(
    store: Store, wanted: Sequence[Family], job_of: dict[str, str], limits: Limits, room: int | None
) -> tuple[list[tuple[str, Sequence[str]]], list[str]]:
    code = snapshot_code(store.root)
    jobs: list[tuple[str, Sequence[str]]] = []
    deferred: list[str] = []
    for family in wanted:
        parent_done = family.parent is None or store.run(family.parent).is_done()
        most = limits.array_tasks * family.pack
        for first in range(0, len(family.keys), most):
            keys = family.keys[first : first + most]
            taken = keys if room is None else keys[: max(0, room) * family.pack]
            if not parent_done and family.parent not in job_of:
                taken = ()
            deferred += keys[len(taken) :]
            if not taken:
                continue
            dependency = None if parent_done else f"afterany:{job_of[str(family.parent)]}"
            try:
                submission = _submit(store, replace(family, keys=taken), dependency, code)
            except QueueFullError:
                deferred += taken
                room = 0
                continue
            assert submission.job_id is not None
            job_of |= {key: str(submission.task_id(key)) for key in taken}
            jobs.append((submission.job_id, taken))
            room = None if room is None else room - len(submission.tasks)
    return jobs, deferred


def _submit(store: Store, family: Family, dependency: str | None, code: Path) -> Submission:
    """One sbatch. The intent is written first; a job whose sbatch gave no answer is looked for by its name."""
    submission = new_submission(family.keys, family.pack)
    write_submission(store, submission)
    for key in family.keys:
        run = store.run(key)
        run.save_state(replace(run.state(), state="queued", submission=submission.token, reason=None))
    submitter = _executor(store, submission, family, dependency, code)
    stages = [RunStage(str(store.root.absolute()), submission.token) for _ in submission.tasks]
    try:
        made = submitter.map_array(_call, stages) if len(stages) > 1 else [submitter.submit(stages[0])]
        job_id = made[0].job_id.split("_")[0]
    except Exception as error:
        found = live_jobs(name=submission.name)
        if not found:
            settle_unanswered(store)
            reason = " ".join(str(error).split())[-300:]
            refusal = QueueFullError if re.search("MaxSubmitJob|job submit limit", str(error)) else MissingResourceError
            raise refusal(f"SLURM: sbatch refused {family.stage} {family.keys[0][:8]}: {reason}") from error
        job_id = next(iter(found)).split("_")[0]
        _hand_over(store, submission, job_id)
    answered = replace(submission, job_id=job_id)
    write_submission(store, answered)
    return answered


def _call(stage: RunStage) -> str:
    return stage()


def _hand_over(store: Store, submission: Submission, job_id: str) -> None:
    """Give an adopted job, or the tasks of one, what it is to do."""
    tasks = len(submission.tasks)
    names = [f"{job_id}_{index}" for index in range(tasks)] if tasks > 1 else [job_id]
    hand_over(submission_folder(store, submission.token), names)


def _executor(
    store: Store, submission: Submission, family: Family, dependency: str | None, code: Path
) -> "submitit.SlurmExecutor":
    execution = family.execution
    slurm = Slurm.model_validate(execution["slurm"])
    processes = execution["devices"] // slurm.nodes
    request = Request(
        name=submission.name,
        comment=f"retain {family.stage} of {store.root}",
        minutes=slurm.minutes or UNMEASURED_MINUTES,
        nodes=slurm.nodes,
        tasks=processes,
        cpus=slurm.cpus,
        memory_gb=slurm.memory_gb,
        gpus=processes if execution["accelerator"] != "cpu" else 0,
        dependency=dependency,
    )
    last_line = [sys.executable, "-m", "retain.launchers.jobs.epilogue", str(store.root.absolute()), submission.token]
    return executor(submission_folder(store, submission.token), request, slurm, last_line, code)


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """One submitter at a time; what a killed one left is settled by the next."""
    place = store.root / "submissions"
    place.mkdir(parents=True, exist_ok=True)
    witness = scheduler_witness()
    began = time.monotonic()
    while (lease := take_lease(place / "lease.json", witness)) is None:
        owner = read_owner(place / "lease.json")
        patience = SUBMITTER_WAIT_S if owner is None or owner.is_here() else SILENCE_S + 60
        if time.monotonic() > began + patience:
            raise MissingResourceError(f"{place}: another submitter has held the store for {patience:g} s; try again")
        time.sleep(0.2)
    try:
        yield
    finally:
        lease.release()


def start_detached(study: str, overrides: Sequence[str], store: Path) -> Path:
    """Start `retain run` on this machine so that it outlives the terminal; returns its log."""
    log = store / f"run.{socket.gethostname()}.{time.strftime('%Y%m%d-%H%M%S')}.log"
    command = [sys.executable, "-m", "retain.launchers.cli.app", "run", study, *overrides, "--store", str(store)]
    with log.open("ab") as stream:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
    return log
