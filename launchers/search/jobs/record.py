"""What is kept of a search's own SLURM job.

    studies/<study>/search-job.json           what was asked for, and the job's id once sbatch has answered
    studies/<study>/search-job/<token>/       submitit's files, and what the job says of itself:
        lives.json                            when its last life began, and which has said its end
        end.json                              how it ended
        cancelled                             made by `retain cancel`: it does not go back to the queue
    studies/<study>/search.log                what all jobs of the search have said

Each file has one writer: the submitter, who holds the store alone; the job; `retain cancel`.
"""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retain.launchers.jobs.submissions import JOB_NAME
from retain.launchers.slurm.client import Job
from retain.results.store.loss_table import study_folder
from retain.results.store.runs import Store
from retain.results.store.study_files import SUFFIX
from retain.sweeps.base.files import read_json, write_json
from retain.sweeps.schema.sites import Site

BY_CANCEL = "by retain cancel"
RECORD, FILES, LOG = "search-job.json", "search-job", "search.log"
STAGES_AT_ONCE = 8
"""Jobs that a search has with SLURM at a time, where execution.parallel does not say."""
MOST_LOST, SHORT_S = 3, 3600.0
"""A job that dies so often in a row without a word, each time within an hour of its start, does not go back to the queue."""


@dataclass(frozen=True)
class SearchJob:
    """A job that searches a study, as it was submitted."""

    study: str
    token: str
    launcher: str
    """slurm: each stage is a job of its own; slurm-ray: all are trained in this job."""
    nodes: int
    path: str
    """Of the study's file."""
    fields: dict[str, Any]
    """Of the study as it was at submission, overrides applied: what is edited later changes nothing."""
    budget: str | None
    device: str
    site: dict[str, Any] | None
    """The fields of the site's profile that the stages are submitted with."""
    when: float
    """Seconds since 1970."""
    job_id: str | None = None
    """None until sbatch has answered."""

    @property
    def name(self) -> str:
        """The job's name in SLURM."""
        return f"{JOB_NAME}search-{self.token}"

    def profile(self) -> Site | None:
        """The site's profile; None where there is none."""
        return None if self.site is None else Site.model_validate(self.site)

    def found_in(self, live: Mapping[str, Job]) -> Job | None:
        """The job among those that SLURM has not finished with."""
        if self.job_id is not None:
            return live.get(self.job_id)
        return next((job for job in live.values() if job.name == self.name), None)

    def files(self, store: Store) -> Path:
        """Where submitit keeps its files, and the job what it says of itself."""
        return study_folder(store.root, self.study) / FILES / self.token


@dataclass(frozen=True)
class Lives:
    """The lives of one job: it goes back to the queue after each but the last."""

    began: float
    """When the last one did."""
    said: str | None = None
    """The last one that has said its end, by SLURM's count of restarts."""
    lost: int = 0
    """Deaths in a row, each soon after the start."""
    number: int = 0
    """How often the search has begun in this job."""


def read_search_job(store: Store, study: str) -> SearchJob | None:
    """The last job that was submitted for a study's search."""
    try:
        return SearchJob(**read_json(study_folder(store.root, study) / RECORD))
    except FileNotFoundError:
        return None


def search_jobs(store: Store, study: str | None) -> list[SearchJob]:
    """The last search job of a study, also where its points are named; of every study of the store without a name."""
    if study is None:
        names = sorted(path.parent.name for path in store.root.glob(f"studies/*/{RECORD}"))
    else:
        names = [study, study.removesuffix(SUFFIX)] if study.endswith(SUFFIX) else [study]
    return [job for name in names if (job := read_search_job(store, name)) is not None]


def write_search_job(store: Store, job: SearchJob) -> None:
    """For a submitter that holds the store alone."""
    folder = study_folder(store.root, job.study)
    job.files(store).mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, asdict(job))


def forget_search_job(store: Store, job: SearchJob) -> None:
    """SLURM did not take it. For a submitter that holds the store alone."""
    (study_folder(store.root, job.study) / RECORD).unlink(missing_ok=True)
    shutil.rmtree(job.files(store), ignore_errors=True)


def begin_life(files: Path) -> bool:
    """The job starts; whether for the first time."""
    (files / "end.json").unlink(missing_ok=True)
    lives = _lives(files)
    _save_lives(files, replace(lives, began=time.time(), number=lives.number + 1))
    return lives.number == 0


def stop_life(files: Path) -> None:
    """The job goes back to the queue, after all was saved."""
    _save_lives(files, replace(_lives(files), said=_restarts(), lost=0))


def lose_life(files: Path) -> bool:
    """Enter a death; whether the job may try again."""
    lives = _lives(files)
    lost = lives.lost + 1 if time.time() < lives.began + SHORT_S else 1
    _save_lives(files, replace(lives, said=_restarts(), lost=lost))
    return lost < MOST_LOST


def is_unsaid(files: Path) -> bool:
    """Whether this life of the job has not said its end."""
    return _lives(files).said != _restarts() and read_end(files) is None


def _lives(files: Path) -> Lives:
    try:
        return Lives(**read_json(files / "lives.json"))
    except FileNotFoundError:
        return Lives(time.time())


def _save_lives(files: Path, lives: Lives) -> None:
    write_json(files / "lives.json", asdict(lives))


def _restarts() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")


def write_end(files: Path, state: str, reason: str | None = None) -> None:
    """How the job ended: done, failed or cancelled."""
    write_json(files / "end.json", {"state": state, "reason": reason})


def read_end(files: Path) -> tuple[str, str | None] | None:
    """How the job ended and why; None where it has not said."""
    try:
        end = read_json(files / "end.json")
    except FileNotFoundError:
        return None
    return end["state"], end["reason"]


def mark_cancelled(files: Path) -> None:
    """Tell the job that it is not to go back to the queue."""
    files.mkdir(parents=True, exist_ok=True)
    (files / "cancelled").touch()


def is_cancelled(files: Path) -> bool:
    return (files / "cancelled").exists()
