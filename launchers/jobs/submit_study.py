"""`retain submit` and `retain retry`: hand what a study lacks to SLURM."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.datamodules.corpora.prepare import Report, ignore_progress
from retain.launchers.jobs.branches import retry_runs
from retain.launchers.jobs.resources import as_executions, find_site, slurm_resources
from retain.launchers.jobs.submit import Submitted, submit_runs
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import require_slurm


@dataclass(frozen=True)
class SubmittedJob:
    """One job, or one array of jobs."""

    job_id: str
    keys: list[str]
    """The keys of its runs."""


@dataclass(frozen=True)
class Submission:
    """What `retain submit --json` prints."""

    study: str
    jobs: list[SubmittedJob]
    adopted: list[str]
    """Ids of jobs of an earlier submission whose sbatch had not answered."""
    released: list[str]
    """Ids of jobs that SLURM held because a node could not start them."""
    queued_already: int
    done_already: int
    failed: list[str]
    """Keys of runs that failed, were cancelled or skipped: `retain retry` resumes them."""
    deferred: list[str]
    """Keys of runs beyond the user's limit of jobs: the jobs that end submit them."""


def submit_study(
    name: str,
    overrides: Sequence[str] = (),
    store: Path = Path("runs"),
    site: str | None = None,
    report: Report = ignore_progress,
) -> Submission:
    """Prepare the data of a study, and submit the runs that are missing. Raises StudyError, MissingResourceError.

    site: the name of a site profile; without it, the one that matches this machine.
    """
    require_slurm()
    chosen = find_site(site)
    opened = prepare_study(name, overrides, store, report)
    resources = slurm_resources(opened.tree, opened.file, opened.store, chosen and chosen[1])
    register(opened.tree, opened.file, opened.facts, opened.store, as_executions(resources))
    return as_submission(opened.tree.study, submit_runs(opened.store, list(opened.tree.stages)))


def retry_study(opened: OpenedStudy, keys: Sequence[str], site: str | None) -> list[str]:
    """Plan failed, cancelled and skipped runs of a study again, with the resources that the study asks for now."""
    chosen = find_site(site)
    resources = slurm_resources(opened.tree, opened.file, opened.store, chosen and chosen[1])
    register(opened.tree, opened.file, opened.facts, opened.store, as_executions(resources))
    return retry_runs(opened.store, keys)


def as_submission(study: str, submitted: Submitted) -> Submission:
    """What a call of `submit_runs` did, for people and scripts."""
    return Submission(
        study=study,
        jobs=[SubmittedJob(job_id, list(keys)) for job_id, keys in submitted.jobs],
        adopted=list(submitted.adopted),
        released=list(submitted.released),
        queued_already=submitted.queued_already,
        done_already=submitted.done_already,
        failed=list(submitted.failed),
        deferred=list(submitted.deferred),
    )
