"""What was handed to SLURM: one folder a submission, written before sbatch is called.

    submissions/<token>/intent.json   the stage keys, in order, how many one task trains, and the job's id once it is known
    submissions/deferred.json         the stage keys that are to be submitted once the user's limit of jobs allows it

The token is in the job's name, so that a job whose sbatch never answered is found again.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.results.store.runs import Run, Store
from retain.sweeps.base.files import write_json

JOB_NAME = "retain-"
"""How the names of our jobs begin; the token follows."""


@dataclass(frozen=True)
class Submission:
    """One job, or one array of jobs."""

    token: str
    keys: tuple[str, ...]
    when: float
    """Seconds since 1970."""
    job_id: str | None = None
    """None until sbatch has answered."""
    pack: int = 1
    """Runs that one task trains, one after the other; the last task may have fewer."""

    @property
    def name(self) -> str:
        """The job's name in SLURM."""
        return f"{JOB_NAME}{self.token}"

    @property
    def tasks(self) -> list[tuple[str, ...]]:
        """The stage keys of each task."""
        return [self.keys[first : first + self.pack] for first in range(0, len(self.keys), self.pack)]

    def task_id(self, key: str) -> str | None:
        """The id of the job that trains a stage: 123, or 123_4 in an array."""
        if self.job_id is None or len(self.keys) <= self.pack:
            return self.job_id
        return f"{self.job_id}_{self.keys.index(key) // self.pack}"

    def keys_of_jobs(self) -> dict[str, tuple[str, ...]]:
        """The stage keys of each job or task of an array, by its id; none until sbatch has answered."""
        if self.job_id is None:
            return {}
        tasks = self.tasks
        if len(tasks) == 1:
            return {self.job_id: tasks[0]}
        return {f"{self.job_id}_{number}": keys for number, keys in enumerate(tasks)}

    def own_keys(self) -> tuple[str, ...]:
        """The stage keys of the task that this process belongs to."""
        return self.tasks[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]


@dataclass(frozen=True)
class Deferral:
    """What is beyond the user's limit of jobs."""

    keys: tuple[str, ...] = ()
    """Parents first."""
    carrier: str | None = None
    """The job that has stayed in the queue to submit them."""


def read_deferral(store: Store) -> Deferral:
    """What waits for room."""
    try:
        fields = json.loads((store.root / "submissions" / "deferred.json").read_text())
    except FileNotFoundError:
        return Deferral()
    return Deferral(tuple(fields["keys"]), fields["carrier"])


def write_deferral(store: Store, deferral: Deferral) -> None:
    """For a submitter that holds the store alone."""
    write_json(store.root / "submissions" / "deferred.json", asdict(deferral))


def submission_folder(store: Store, token: str) -> Path:
    return store.root / "submissions" / token


def new_submission(keys: Sequence[str], pack: int = 1) -> Submission:
    return Submission(os.urandom(6).hex(), tuple(keys), time.time(), pack=pack)


def write_submission(store: Store, submission: Submission) -> None:
    """Enter a submission, or what is new about it."""
    folder = submission_folder(store, submission.token)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "intent.json", asdict(submission))


def read_submission(store: Store, token: str) -> Submission:
    """Raises FileNotFoundError."""
    fields = json.loads((submission_folder(store, token) / "intent.json").read_text())
    return Submission(**fields | {"keys": tuple(fields["keys"])})


def unanswered(store: Store) -> list[Submission]:
    """Submissions whose sbatch has not answered: it failed, timed out, or its caller was killed."""
    found = []
    for path in (store.root / "submissions").glob("*/intent.json"):
        submission = read_submission(store, path.parent.name)
        if submission.job_id is None:
            found.append(submission)
    return found


def packed_with(store: Store, run: Run) -> list[Run]:
    """The other runs that the job of a run's last submission was given."""
    token = run.state().submission
    if token is None:
        return []
    keys = next((keys for keys in read_submission(store, token).tasks if run.key in keys), ())
    others = [store.run(key) for key in keys if key != run.key]
    return [other for other in others if other.state().submission == token]


def submitted_job(store: Store, run: Run) -> str | None:
    """The id of the job that a run's last submission gave it; None where there is none, or sbatch has not answered."""
    return submitted_jobs(store, [run]).get(run.key)


def submitted_jobs(store: Store, runs: Iterable[Run]) -> dict[str, str]:
    """As `submitted_job`, of many runs by key; each submission is read once."""
    job_of: dict[str, dict[str, str]] = {}
    found = {}
    for run in runs:
        token = run.state().submission
        if token is None:
            continue
        if token not in job_of:
            job_of[token] = _jobs_by_key(store, token)
        if job := job_of[token].get(run.key):
            found[run.key] = job
    return found


def _jobs_by_key(store: Store, token: str) -> dict[str, str]:
    try:
        jobs = read_submission(store, token).keys_of_jobs()
    except (FileNotFoundError, ValueError):
        return {}
    return {key: job for job, keys in jobs.items() for key in keys}
