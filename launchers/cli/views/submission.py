"""What `retain submit` and `retain search --launcher slurm` print."""

from collections.abc import Mapping
from typing import Any

from retain.launchers.console import open_console, print_line
from retain.launchers.jobs.code_snapshot import snapshot_code
from retain.launchers.jobs.resources import Resources
from retain.launchers.jobs.sbatch import families, sbatch_script
from retain.launchers.jobs.submit import Submitted
from retain.launchers.planning.opened_study import OpenedStudy
from retain.sweeps.base.units import counted


def print_submission(submission: Submitted, retry: str, cancel: str = "") -> None:
    """Print what was submitted, what was not, and why. retry, cancel: the commands that do so with the same runs."""
    console = open_console()
    runs = sum(len(job.keys) for job in submission.jobs)
    print_line(console, f"{counted(runs, 'stage')} submitted in {counted(len(submission.jobs), 'job')}")
    outdated = f"queued with other resources than the study asks for now: {cancel} && {retry}"
    lines = (
        (submission.done_already, "stage", "done already"),
        (submission.queued_already, "stage", "queued or running already"),
        (len(submission.outdated), "stage", outdated),
        (len(submission.adopted), "job", "of an earlier submission found: its sbatch had not answered"),
        (len(submission.released), "job", "released that a node could not start"),
        (len(submission.failed), "stage", f"failed, cancelled or skipped: {retry}"),
        (len(submission.deferred), "stage", "beyond your limit of jobs: jobs submit what waits when they end"),
    )
    for count, noun, what in lines:
        if count:
            print_line(console, f"{counted(count, noun)} {what}")


def print_search(document: Mapping[str, Any], hints: str) -> None:
    """Print the job of a search, its log, and the commands that may come next."""
    what = "submitted as" if document["submitted"] else "is queued or running already, with the options of that start:"
    print(f"search of {document['study']}: {what} job {document['job_id']} ({document['launcher']})")
    print(f"log: {document['log']}")
    print(hints)


def print_scripts(opened: OpenedStudy, resources: Mapping[str, Resources], site: str | None) -> None:
    """Print the script of every family of siblings as it would be submitted, and the reason for its walltime."""
    code = snapshot_code(opened.store.root)
    missing = [key for key, state in opened.store.states(opened.tree.stages).items() if state.state != "done"]
    for family in families(opened.store, missing):
        dependency = ":".join(["afterany", *(f"<job of {key[:8]}>" for key in family.needs)]) if family.needs else None
        pack = f", {family.pack} to a job" if family.pack > 1 else ""
        print(f"# {family.stage}{pack}: {' '.join(key[:8] for key in family.keys)}")
        print(f"# site {site or 'without a profile'}; walltime {resources[family.keys[0]].walltime}")
        print(sbatch_script(opened.store, family, dependency, code))
