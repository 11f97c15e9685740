"""What `retain submit` and `retain search --launcher slurm` print."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retain.launchers.console import MOST_ROWS, new_table, open_console, print_line
from retain.launchers.jobs.code_snapshot import snapshot_path
from retain.launchers.jobs.resources import Resources, as_executions
from retain.launchers.jobs.sbatch import planned_families, sbatch_script
from retain.launchers.kinds import ASSEMBLE, CONTINUE, PREPARE
from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.store.index.states import shown_states
from retain.results.store.state import StateSummary
from retain.sweeps.base.units import counted
from retain.sweeps.tree.evaluation_runs import EVALUATE
from retain.sweeps.tree.tree import Tree

if TYPE_CHECKING:
    from rich.console import Console

    from retain.launchers.jobs.submit import Submitted, SubmittedJob

PREPARING = (PREPARE.name, ASSEMBLE.name, CONTINUE.name)


def print_submission(submission: "Submitted", retry: str, cancel: str = "", watch: str = "") -> None:
    """Print the jobs that were submitted and what they wait for, what was not submitted, and why.

    retry, cancel, watch: the commands that do so with the same runs.
    """
    console = open_console()
    measured = sum(len(job.keys) for job in submission.jobs if job.stage == EVALUATE)
    preparing = sum(len(job.keys) for job in submission.jobs if job.stage in PREPARING)
    stages = sum(len(job.keys) for job in submission.jobs) - measured - preparing
    runs = [counted(preparing, "run that prepares data", "runs that prepare data")] if preparing else []
    runs += [counted(stages, "stage")] if stages or not preparing else []
    runs += [counted(measured, "evaluation")] if measured else []
    print_line(console, f"{' and '.join(runs)} submitted in {counted(len(submission.jobs), 'job')}")
    outdated = f"queued with other resources than the study asks for now: {cancel} && {retry}"
    room = "jobs submit what waits when they end"
    if submission.unattended:
        room = "no job of this store is left to submit them, so submit again once you have fewer jobs"
    lines = (
        (submission.done_already, "stage", "done already"),
        (submission.queued_already, "stage", "queued or running already"),
        (len(submission.outdated), "stage", outdated),
        (len(submission.adopted), "job", "of an earlier submission found: its sbatch had not answered"),
        (len(submission.released), "job", "released that a node could not start"),
        (len(submission.failed), "stage", f"failed, cancelled or skipped: {retry}"),
        (len(submission.deferred), "stage", f"beyond your limit of jobs: {room}"),
    )
    for count, noun, what in lines:
        if count:
            print_line(console, f"{counted(count, noun)} {what}")
    if any(job.stage == CONTINUE.name for job in submission.jobs):
        print_line(console, "a job submits the study's stages once its data is prepared")
    if submission.jobs:
        _print_jobs(console, submission.jobs)
    if watch and (submission.jobs or submission.queued_already):
        print_line(console, f"watch: {watch}")


def _print_jobs(console: "Console", jobs: "Sequence[SubmittedJob]") -> None:
    """Print a row for each job or array of jobs: its id, stage, number of runs, first key, and the jobs that it waits for."""
    table = new_table("job", "stage", "runs", "first run", "starts after")
    for job in jobs[:MOST_ROWS]:
        waits = ", ".join(job.after[:3]) + (f" and {len(job.after) - 3:,} more" if len(job.after) > 3 else "")
        table.add_row(job.job_id, job.stage, str(len(job.keys)), job.keys[0][:8], waits or "-")
    console.print(table)
    if len(jobs) > MOST_ROWS:
        print_line(console, f"{counted(len(jobs) - MOST_ROWS, 'more job')} with --json")


def print_search(document: Mapping[str, Any], hints: str) -> None:
    """Print the job of a search, its log, and the commands that may come next."""
    what = "submitted as" if document["submitted"] else "is queued or running already, with the options of that start:"
    print(f"search of {document['study']}: {what} job {document['job_id']} ({document['launcher']})")
    print(f"log: {document['log']}")
    print(hints)


def print_scripts(
    opened: OpenedStudy,
    tree: Tree,
    states: Mapping[str, StateSummary],
    resources: Mapping[str, Resources],
    site: str | None,
) -> None:
    """Print the first script of each stage as it would be submitted, what differs in the others, and the reason for each
    walltime; write nothing.

    tree, states: the stages of the study with its evaluations, and their states.
    """
    code = snapshot_path(opened.store.root)
    missing = [key for key, state in states.items() if state.state != "done"]
    if not missing:
        print("# nothing to submit: every stage is done")
    first: dict[str, list[str]] = {}
    for family in planned_families(tree, missing, as_executions(resources)):
        dependency = ":".join(["afterany", *(f"<job of {key[:8]}>" for key in family.needs)]) if family.needs else None
        many = min(family.pack, len(family.keys))
        pack = f", {many} to a job" if family.pack > 1 else ""
        print(f"# {family.stage}{pack}: {' '.join(key[:8] for key in family.keys)}")
        print(f"# site {site or 'without a profile'}; walltime {resources[family.keys[0]].walltime}")
        lines = sbatch_script(opened.store, family, dependency, code).splitlines()
        above = first.setdefault(family.stage, lines)
        print(*(lines if above is lines else _differences(family.stage, lines, above)), "", sep="\n")


def _differences(stage: str, lines: Sequence[str], first: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a script that the first one of its stage lacks, and the options of that one which it lacks."""
    yield f"# as the first script of {stage}, but with"
    yield from (line for line in lines if line not in first)
    options = {line.partition("=")[0] for line in lines}
    for line in first:
        if line.startswith("#SBATCH") and line.partition("=")[0] not in options:
            yield f"# and without {line.removeprefix('#SBATCH ')}"


def print_local_start(opened: OpenedStudy, run: str) -> None:
    """Print what `submit --launcher local` would train. run: the command that it would start in the background."""
    states = shown_states(opened.store, opened.tree.stages)
    missing = sum(state.state != "done" for state in states.values())
    print(f"{run}: would train {counted(missing, 'stage')} of {len(states):,} in the background")
