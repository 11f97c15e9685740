"""Records of what was submitted to SLURM: one folder for each submission, written before sbatch is called.

    submissions/<token>/intent.json   the runs in order, how many of them one task does, and the job's id once it is known
    submissions/<token>.unanswered    an empty file, until the job's id is known
    submissions/deferred.json         the runs to submit once the user's limit of jobs allows it

A job's name says study, stage and the first run's key, and ends with the token, so that a job whose sbatch never answered is
found again.
"""

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retain.launchers.slurm.client import Job
from retain.launchers.slurm.liveness import slurm_liveness
from retain.results.store.lease import SILENCE_S, Owner, held_by, wait_for_lease
from retain.results.store.readiness import written_state
from retain.results.store.runs import Run, Store
from retain.results.store.state import UNENDED
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, MissingResourceError
from retain.sweeps.base.notices import Waiting, notice

INTENT, UNANSWERED, BACKLOG, LEASE = "intent.json", ".unanswered", "deferred.json", "lease.json"
TOKEN_BYTES = 6
UNLABELLED = "retain"
"""The label of jobs that were submitted before names had labels."""
LONGEST_LABEL = 60
"""Letters of a job's name before its token."""
SUBMITTER_WAIT_S = 120.0
"""How long a submitter waits for another one on this machine. On another machine, until its silence shows that it is dead."""


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
    """Number of runs that one task does, one after the other; the last task may have fewer."""
    label: str = UNLABELLED
    """What the job's name says of it to readers of squeue; see `job_label`."""

    @property
    def name(self) -> str:
        """The job's name in SLURM, such as laptop-finetune-5b6e8cba-7caa430e0cf4."""
        return f"{self.label}-{self.token}"

    @property
    def tasks(self) -> list[tuple[str, ...]]:
        """The keys of the runs of each task."""
        return [self.keys[first : first + self.pack] for first in range(0, len(self.keys), self.pack)]

    def keys_of_jobs(self) -> dict[str, tuple[str, ...]]:
        """The keys of the runs of each job by its id: 123, or 123_4 in an array; empty until sbatch has answered."""
        if self.job_id is None:
            return {}
        tasks = self.tasks
        if len(tasks) == 1:
            return {self.job_id: tasks[0]}
        return {f"{self.job_id}_{number}": keys for number, keys in enumerate(tasks)}

    def own_keys(self) -> tuple[str, ...]:
        """The keys of the runs of the task that this process belongs to."""
        return self.tasks[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]


@dataclass(frozen=True)
class Backlog:
    """Runs beyond the user's limit of jobs."""

    keys: tuple[str, ...] = ()
    """Parents first."""
    carrier: str | None = None
    """The job that stays in the queue to submit them."""

    def once_submitted(self, keys: Sequence[str], deferred: Collection[str]) -> "Backlog":
        """The backlog once these runs (parents first) have jobs, but for some that are deferred. Others keep their places."""
        own, others = iter([key for key in keys if key in deferred]), set(self.keys) - set(keys)
        kept = [key if key in others else next(own, None) for key in self.keys]
        return replace(self, keys=tuple(key for key in (*kept, *own) if key is not None))


def read_backlog(store: Store) -> Backlog:
    """The runs that wait until the user may have more jobs. Raises DamageError."""
    path = store.root / "submissions" / BACKLOG
    try:
        return read_document(path, Backlog, "delete this file and submit the studies of this store again")
    except FileNotFoundError:
        return Backlog()


def write_backlog(store: Store, backlog: Backlog) -> None:
    """Replace the backlog. For the holder of the store's submission lease."""
    # The carrier of an empty backlog ends, so that nothing may be left to it from then on.
    write_document(store.root / "submissions" / BACKLOG, asdict(backlog if backlog.keys else Backlog()))


@contextlib.contextmanager
def submission_lease(store: Store, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Allow one submitter of a store at a time. Raises MissingResourceError if another one holds the store for too long.

    A submitter that is killed in between leaves unanswered submissions, which the next one settles.
    poll: called several times a second while another one holds the store; an exception from it ends the waiting.
    """
    place = store.root / "submissions"
    place.mkdir(parents=True, exist_ok=True)
    path = place / LEASE

    def patience(owner: Owner | None) -> float:
        return SUBMITTER_WAIT_S if owner is None or owner.is_here() else SILENCE_S + 60

    def say(owner: Owner | None) -> None:
        poll()
        waiting.say(f"{held_by(path)}, at most {patience(owner):.0f} s")

    waiting = Waiting(f"{place}: another process is submitting")
    lease = wait_for_lease(path, slurm_liveness(), patience, say)
    if lease is None:
        raise MissingResourceError(f"{place}: another submitter has held the store for too long; try again later")
    try:
        yield
    except KeyboardInterrupt:
        notice("interrupted while jobs were submitted; submit again: that adds only what is missing")
        raise
    finally:
        lease.release()


def submission_folder(store: Store, token: str) -> Path:
    """The folder of a submission: its record, and submitit's files."""
    return store.root / "submissions" / token


def new_submission(keys: Sequence[str], pack: int = 1, label: str = UNLABELLED) -> Submission:
    """A submission of these runs with a new token."""
    return Submission(os.urandom(TOKEN_BYTES).hex(), tuple(keys), time.time(), pack=pack, label=label)


def job_label(study: str, stage: str, key: str) -> str:
    """The study, the stage and the beginning of a job's first key, in letters that SLURM prints as they are."""
    end = f"-{stage}-{key[:8]}"
    return re.sub(r"[^A-Za-z0-9._-]", "_", (study or UNLABELLED)[: LONGEST_LABEL - len(end)] + end)


def token_of(name: str) -> str | None:
    """The token in the name of a job; None if the job is not one of Retain's."""
    found = re.search(rf"-([0-9a-f]{{{2 * TOKEN_BYTES}}})$", name)
    return found and found[1]


def write_submission(store: Store, submission: Submission) -> None:
    """Write the record of a submission, or update it."""
    folder = submission_folder(store, submission.token)
    folder.mkdir(parents=True, exist_ok=True)
    if submission.job_id is None:
        folder.with_suffix(UNANSWERED).touch()
    write_document(folder / INTENT, asdict(submission))
    if submission.job_id is not None:
        folder.with_suffix(UNANSWERED).unlink(missing_ok=True)


def forget_submission(store: Store, token: str) -> None:
    """Remove the record of a submission that SLURM does not know."""
    folder = submission_folder(store, token)
    (folder / INTENT).unlink(missing_ok=True)
    folder.with_suffix(UNANSWERED).unlink(missing_ok=True)


def read_submission(store: Store, token: str) -> Submission:
    """The record of a submission. Raises FileNotFoundError, or DamageError if the record is damaged."""
    folder = submission_folder(store, token)
    cure = f"cancel its job, whose name in squeue ends with {token}, delete {folder} and submit the study again"
    return read_document(folder / INTENT, Submission, cure)


def unanswered_submissions(store: Store) -> Iterator[Submission]:
    """The submissions whose sbatch has not answered. Raises DamageError."""
    for marker in sorted((store.root / "submissions").glob(f"*{UNANSWERED}")):
        with contextlib.suppress(FileNotFoundError):  # whoever wrote it was killed before it had a record
            submission = read_submission(store, marker.stem)
            if submission.job_id is None:
                yield submission


def is_to_do(run: Run, token: str) -> bool:
    """Whether a job of this submission has to do the run: it has not ended, was not submitted again and is not damaged."""
    state = written_state(run)
    return state.state in UNENDED and state.submission == token


def packed_with(store: Store, runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The other runs that the job of each run's last submission has to do, by key; each record and each state is read once."""
    packs: dict[str, dict[str, tuple[str, ...]]] = {}
    found: dict[str, list[Run]] = {}

    @functools.cache
    def to_do(token: str, keys: tuple[str, ...]) -> list[Run]:
        return [run for key in keys if is_to_do(run := store.run(key), token)]

    for run in runs:
        token = run.state().submission
        if token is None:
            found[run.key] = []
            continue
        if token not in packs:
            packs[token] = {key: keys for keys in read_submission(store, token).tasks for key in keys}
        found[run.key] = [other for other in to_do(token, packs[token].get(run.key, ())) if other != run]
    return found


def submitted_job(store: Store, run: Run) -> str | None:
    """The id of the job of a run's last submission; None if there is none, or sbatch has not answered."""
    return submitted_jobs(store, [run]).get(run.key)


def submitted_jobs(store: Store, runs: Iterable[Run], damaged: dict[str, str] | None = None) -> dict[str, str]:
    """`submitted_job` of many runs by key; each submission is read once.

    damaged: the runs whose submission cannot be read are entered here, with a sentence; None: the first raises DamageError.
    """
    job_of: dict[str, dict[str, str]] = {}
    found = {}
    for run in runs:
        token = run.state().submission
        if token is None:
            continue
        try:
            if token not in job_of:
                job_of[token] = {key: job for job, keys in keys_of_jobs(store, token).items() for key in keys}
        except DamageError as error:
            if damaged is None:
                raise
            damaged[run.key] = str(error)
            continue
        if job := job_of[token].get(run.key):
            found[run.key] = job
    return found


def is_of(run: Run, job: Job) -> bool:
    """Whether a job belongs to the run's last submission, as its name says. Its id is not enough: the controller of a cluster
    that was set up again, or has lost its state, gives out the ids of earlier jobs once more."""
    return token_of(job.name) == run.state().submission


def still_live(store: Store, jobs: Mapping[str, str], live: Mapping[str, Job]) -> dict[str, str]:
    """Those of the jobs that runs were submitted as, by key, which are among the live ones."""
    return {key: job for key, job in jobs.items() if job in live and is_of(store.run(key), live[job])}


def unanswered_jobs(store: Store, runs: Iterable[Run], live: Mapping[str, Job]) -> dict[str, str]:
    """The ids of the live jobs of runs whose sbatch has not answered, by key: found by the token in their names.

    live: jobs by id, as `live_jobs` returns them.
    """
    ids = {token: job.job_id.partition("_")[0] for job in live.values() if (token := token_of(job.name))}
    found: dict[str, str] = {}
    for run in runs:
        token = run.state().submission
        if token is None or token not in ids:
            continue
        with contextlib.suppress(FileNotFoundError, DamageError):
            submission = replace(read_submission(store, token), job_id=ids[token])
            found |= {key: job for job, keys in submission.keys_of_jobs().items() for key in keys if key == run.key}
    return found


def job_logs(store: Store, run: Run, job: str | None = None) -> list[Path]:
    """The files with what a job of a run's last submission printed, by rank. job: its id; None: that of the submission."""
    token, job = run.state().submission, job or submitted_job(store, run)
    return sorted(submission_folder(store, token).glob(f"{job}_*log.out")) if token and job else []


def first_log(store: Store, run: Run, job: str) -> Path | None:
    """The first of `job_logs`, that of rank 0; None if the job has not started. It does not list a folder of many jobs."""
    token = run.state().submission
    path = submission_folder(store, token) / f"{job}_0_log.out" if token else None
    return path if path is not None and path.exists() else None


def keys_of_jobs(store: Store, token: str) -> dict[str, tuple[str, ...]]:
    """`Submission.keys_of_jobs` of a submission; empty if its record is missing. Raises DamageError."""
    try:
        return read_submission(store, token).keys_of_jobs()
    except FileNotFoundError:
        return {}


def is_attended(store: Store, backlog: Backlog, jobs: Mapping[str, Job]) -> bool:
    """Whether one of these jobs submits the backlog: its carrier, or a job that still has runs of this store to do."""
    return backlog.carrier in jobs or any_has_runs(store, jobs.values())


def any_has_runs(store: Store, jobs: Iterable[Job]) -> bool:
    """Whether one of these jobs still has runs of this store to do: it submits the backlog once they have ended."""
    return any(_have_runs(store, jobs))


def any_is_ending(store: Store, jobs: Iterable[Job]) -> bool:
    """Whether one of these jobs has done its runs of this store, and so makes room in a moment."""
    return not all(_have_runs(store, (job for job in jobs if job.state == "RUNNING")))


def _have_runs(store: Store, jobs: Iterable[Job]) -> Iterator[bool]:
    """Whether it still has runs to do, for each of these jobs that is one of this store."""
    keys_of = functools.cache(functools.partial(keys_of_jobs, store))
    for job in jobs:
        with contextlib.suppress(DamageError):  # what its runs are part of says so
            if (token := token_of(job.name)) and (keys := keys_of(token).get(job.job_id)):
                yield any(is_to_do(store.run(key), token) for key in keys)
