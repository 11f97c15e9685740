"""Submits the runs that are not done to SLURM, through submitit, each exactly once."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from retain.datamodules.corpora.reading.report import Report, ignore_progress
from retain.launchers.jobs.branches import skip_blocked
from retain.launchers.jobs.code_snapshot import snapshot_code
from retain.launchers.jobs.data.submit import JobsForData, register_continuation
from retain.launchers.jobs.dead_attempts import settle_dead_attempts
from retain.launchers.jobs.entry import do_task
from retain.launchers.jobs.resources import Resources, as_executions, find_site, slurm_resources
from retain.launchers.jobs.sbatch import (
    Family,
    asks_otherwise,
    failing_at_once,
    families,
    family_executor,
    hand_over,
    label_of,
    outside_job,
)
from retain.launchers.jobs.submissions import (
    Submission,
    forget_submission,
    is_attended,
    new_submission,
    read_backlog,
    still_live,
    submission_folder,
    submission_lease,
    submitted_jobs,
    unanswered_submissions,
    write_backlog,
    write_submission,
)
from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.key_report import tell_edit
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.preparation import record_runs
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import QueueFullError, live_jobs, refused, release_jobs, require_slurm
from retain.launchers.slurm.partitions import Limits, read_config, read_limits, room_within
from retain.launchers.stage.on_end import begin_launch
from retain.results.store.runs import Store
from retain.results.store.state import STOPPED, UNENDED
from retain.sweeps.base.processes.many_writes import Count, each_written, uncounted
from retain.sweeps.schema.sites import Site

MOST_TASKS = 64
"""Tasks of one array that a job waits for by their own ids."""


@dataclass(frozen=True)
class SubmittedJob:
    """One job, or one array of jobs."""

    job_id: str
    """SLURM's id of the job or of the array."""
    keys: list[str]
    """The keys of its runs."""
    name: str = ""
    """Its name in squeue."""
    stage: str = ""
    """The stage of its runs."""
    after: list[str] = field(default_factory=list)
    """Ids of the jobs that it waits for."""


@dataclass(frozen=True)
class Submitted:
    """What `retain submit --json` prints."""

    study: str
    """The name of the study, or of the run as the user gave it; empty for runs that a job submits."""
    jobs: list[SubmittedJob]
    """The jobs that this call submitted."""
    adopted: list[str]
    """Ids of jobs of earlier submissions whose sbatch had not answered."""
    released: list[str]
    """Ids of jobs that SLURM held because a node could not start them, and that were released."""
    queued_already: int
    """The number of runs that were queued or running already."""
    done_already: int
    """The number of runs that were done already."""
    failed: list[str]
    """Keys of runs that failed, were cancelled or skipped; `retain retry` resumes them."""
    deferred: list[str]
    """Keys of runs beyond the user's limit of jobs; jobs submit them when they end."""
    limit: int | None
    """The user's limit of jobs."""
    outdated: list[str] = field(default_factory=list)
    """Keys of queued runs whose job asks for other resources than the study does now."""
    unattended: bool = False
    """Whether runs are deferred, and no job of this store is left that would submit them."""


def submit_study(
    name: str,
    overrides: Sequence[str] = (),
    store: Path = Path("runs"),
    site: str | None = None,
    report: Report = ignore_progress,
) -> Submitted:
    """Prepare the data of a study, and submit the runs that are missing. Raises StudyError, MissingResourceError.

    Large corpora are prepared by jobs. Then the stages are submitted by a job that waits for these.

    site: the name of a site profile; by default the one that matches this machine.
    """
    jobs, opened = _with_data(name, overrides, store, site, report)
    if jobs.keys:
        last = register_continuation(opened.file, opened.store, jobs.site, jobs.assemblies)
        record_runs(opened.store, opened.tree.study, [*jobs.keys, last])
        return submit_runs(opened.store, [*jobs.keys, last], opened.tree.study)
    tell_edit(opened, overrides)
    return submit_opened(opened, jobs.site)


def submit_data(
    name: str,
    overrides: Sequence[str] = (),
    store: Path = Path("runs"),
    site: str | None = None,
    report: Report = ignore_progress,
) -> tuple[OpenedStudy, Submitted]:
    """Prepare the data of a study as `submit_study` does, and submit nothing else. Raises as it does."""
    jobs, opened = _with_data(name, overrides, store, site, report)
    return opened, submit_runs(opened.store, jobs.keys, opened.tree.study)


def _with_data(
    name: str, overrides: Sequence[str], store: Path, site: str | None, report: Report
) -> tuple[JobsForData, OpenedStudy]:
    """A study whose data is prepared, and the runs that are to prepare what is not."""
    require_slurm()
    read_config()  # whether the controller answers, before any data is prepared
    chosen = find_site(site)
    jobs = JobsForData(chosen and chosen[1])
    return jobs, prepare_study(name, overrides, store, report, jobs)


def submit_opened(opened: OpenedStudy, site: Site | None) -> Submitted:
    """Submit the missing runs of a study whose data is prepared. Raises StudyError, MissingResourceError."""
    resources = register_for_slurm(opened, site)
    tree = with_evaluations(opened)
    states = opened.store.states(tree.stages)
    if any(state.state in UNENDED for state in states.values()):
        failed = [key for key, state in states.items() if state.state == "failed"]
        begin_launch(opened.store, tree, opened.file.study.execution.on_end, failed)
    submitted = submit_runs(opened.store, list(tree.stages), tree.study)
    return replace(submitted, outdated=_outdated(opened.store, resources) if submitted.queued_already else [])


def register_for_slurm(opened: OpenedStudy, site: Site | None) -> Mapping[str, Resources]:
    """Register the stages and the evaluations of a study with the resources that it requests; returns them by key."""
    tree, file, facts, store = opened.tree, opened.file, opened.facts, opened.store
    asked = {key: one for key, one in with_evaluations(opened).stages.items() if key not in tree.stages}
    resources = slurm_resources(tree, file, store, site, evaluations=asked)
    register(tree, file, facts, store, as_executions(resources))
    return resources


def submit_runs(store: Store, keys: Sequence[str], study: str = "", count: Count = uncounted) -> Submitted:
    """Submit those of these registered runs (parents first) that have neither ended nor a job.

    count: called with how many arrays of jobs are submitted or must wait.
    Raises MissingResourceError if SLURM does not answer, or another submitter holds the store for too long.
    """
    with submission_lease(store):
        return submit_leased(store, keys, study, count)


def submit_leased(store: Store, keys: Sequence[str], study: str = "", count: Count = uncounted) -> Submitted:
    """`submit_runs` for the holder of the store's submission lease."""
    adopted = settle_unanswered(store)
    limits = read_limits()
    submitted, _ = submit_missing(store, keys, limits, room_within(limits), count)
    waits = bool(submitted.deferred) and not submitted.jobs
    unattended = waits and not is_attended(store, read_backlog(store), live_jobs())
    return replace(submitted, study=study, adopted=adopted, unattended=unattended)


def submit_missing(
    store: Store, keys: Sequence[str], limits: Limits, room: int | None, count: Count = uncounted
) -> tuple[Submitted, int | None]:
    """`submit_leased` once unanswered submissions are settled. Returns how many more jobs the user may have after it, too."""
    # 1. Make states and SLURM agree: settle dead attempts, held jobs and blocked runs.
    runs = {key: store.run(key) for key in keys}
    settle_dead_attempts(store, list(runs.values()))
    left = [key for key, run in runs.items() if not run.is_done()]
    needed = {need for key in left for need in runs[key].needs()}
    recorded = submitted_jobs(store, (store.run(key) for key in {*keys, *needed}))
    live = live_jobs(recorded.values())
    job_of = still_live(store, recorded, live)
    released = release_jobs([job for job in job_of.values() if live[job].failed_to_start])
    skip_blocked(store, [key for key in left if key not in job_of])

    # 2. Choose the runs that have not ended and have neither a job nor a living process.
    states = store.states(left)
    failed = [key for key, state in states.items() if state.state in STOPPED]
    wanted = [
        key
        for key, state in states.items()
        if state.state in UNENDED and key not in job_of and not runs[key].is_running()
    ]

    # 3. Submit them within the user's limits. The rest is the backlog, which jobs submit when they end.
    jobs, deferred, room = _submit_families(store, families(store, wanted), job_of, limits, room, count)
    backlog = read_backlog(store)
    if (waiting := backlog.once_submitted(keys, set(deferred))) != backlog:
        write_backlog(store, waiting)
    queued = sum(state.state != "done" for state in states.values()) - len(wanted) - len(failed)
    done = len(keys) - queued - len(wanted) - len(failed)
    return Submitted("", jobs, [], released, queued, done, failed, deferred, limits.jobs), room


def _outdated(store: Store, resources: Mapping[str, Resources]) -> list[str]:
    """The queued runs whose job asks for other resources than these."""
    states = {key: store.run(key).state() for key in resources}
    tokens = {key: state.submission for key, state in states.items() if state.state == "queued" and state.submission}
    found = []
    for family in families(store, list(tokens)):
        for token in dict.fromkeys(tokens[key] for key in family.keys):
            keys = [key for key in family.keys if tokens[key] == token]
            if asks_otherwise(store, family, token, resources[keys[0]].estimated):
                found += keys
    return found


def settle_unanswered(store: Store) -> list[str]:
    """Adopt the jobs of submissions whose sbatch never answered, and forget the submissions that SLURM does not know.

    Returns the ids of the adopted jobs. For the holder of the submission lease.
    """
    adopted = []
    for submission in list(unanswered_submissions(store)):
        # 1. The job exists: sbatch was killed, or timed out, after SLURM had accepted the job.
        found = live_jobs(name=submission.name)
        if found:
            adopted.append(_adopt(store, submission, next(iter(found))))
        # 2. It does not: its runs, unless they were submitted again since, have no job.
        else:
            each_written(partial(_unqueue, store, submission), submission.keys)
            forget_submission(store, submission.token)
    return adopted


def _unqueue(store: Store, submission: Submission, key: str) -> None:
    run = store.run(key)
    if run.state().submission == submission.token:
        run.unqueue()


def _submit_families(
    store: Store, wanted: Sequence[Family], job_of: dict[str, str], limits: Limits, room: int | None, count: Count
) -> tuple[list[SubmittedJob], list[str], int | None]:
    """Submit families in order, parents first. Returns the jobs, the keys that are beyond the limits, and the room left.

    job_of: the live job of each run that has one; jobs submitted here are added. room: how many more jobs the user may have.
    """
    code: Path | None = None
    jobs: list[SubmittedJob] = []
    deferred: list[str] = []
    for number, family in enumerate(wanted):
        count(number, len(wanted))
        unfinished = [key for key in family.needs if not store.run(key).is_done()]
        most = limits.array_tasks * family.pack
        for first in range(0, len(family.keys), most):
            # 1. Take as many runs as one array and the user's limit allow; none, if a run that they need has no job.
            keys = family.keys[first : first + most]
            taken = keys if room is None else keys[: max(0, room) * family.pack]
            if any(key not in job_of for key in unfinished):
                taken = ()
            if not taken:
                deferred += keys
                continue
            # 2. Submit them as one array, which starts after the jobs of the needed runs.
            after = _whole_arrays([job_of[key] for key in unfinished])
            dependency = ":".join(["afterany", *after]) if after else None
            code = code or snapshot_code(store.root)
            submission = _submit_what_fits(store, replace(family, keys=taken), dependency, code)
            submitted = submission.keys if submission else ()
            deferred += keys[len(submitted) :]
            if len(submitted) < len(taken):
                room = 0
            elif room is not None:
                room -= -(-len(submitted) // family.pack)
            if submission is None:
                continue
            # 3. Families below may depend on these jobs.
            assert submission.job_id is not None
            job_of |= {key: job for job, keys in submission.keys_of_jobs().items() for key in keys}
            jobs.append(SubmittedJob(submission.job_id, list(submitted), submission.name, family.stage, after))
    return jobs, deferred, room


def _whole_arrays(jobs: Sequence[str]) -> list[str]:
    """The jobs, each once; an array instead of its tasks if they are many, as sbatch takes no list of any length."""
    tasks = Counter(job.partition("_")[0] for job in dict.fromkeys(jobs))
    return list(dict.fromkeys(array if tasks[array := job.partition("_")[0]] > MOST_TASKS else job for job in jobs))


def _submit_what_fits(store: Store, family: Family, dependency: str | None, code: Path) -> Submission | None:
    """Submit as many of the first runs of a family as SLURM takes; None if it takes none. Raises MissingResourceError.

    It takes an array as a whole or not at all, and does not tell every limit, such as that of a group of users.
    """
    keys = family.keys
    while keys:
        try:
            return _submit(store, replace(family, keys=keys), dependency, code)
        except QueueFullError:
            tasks = -(-len(keys) // family.pack)
            keys = keys[: tasks // 2 * family.pack]
    return None


def _submit(store: Store, family: Family, dependency: str | None, code: Path) -> Submission:
    """Call sbatch once for a family. Raises QueueFullError, NoAnswerError or MissingResourceError if SLURM refuses it."""
    # 1. Write the record before the call, with a token that becomes part of the job's name.
    submission = new_submission(family.keys, family.pack, label_of(family))
    write_submission(store, submission)
    each_written(lambda key: store.run(key).queue(submission.token), family.keys)
    # 2. Call sbatch.
    executor = family_executor(store, submission, family, dependency, code)
    root, token, tasks = str(store.root.absolute()), submission.token, len(submission.tasks)
    try:
        # submitit prints the errors of sbatch, which the exception holds as well.
        with outside_job(), failing_at_once(), contextlib.redirect_stderr(io.StringIO()):
            if tasks > 1:
                job = executor.map_array(do_task, [root] * tasks, [token] * tasks)[0]
            else:
                job = executor.submit(do_task, root, token)
        answered = replace(submission, job_id=job.job_id.split("_")[0])
        write_submission(store, answered)
        return answered
    except Exception as error:
        # 3. No answer: look for the job by its name, and adopt it if SLURM has it. Otherwise the runs have no job.
        found = live_jobs(name=submission.name)
        if found:
            return replace(submission, job_id=_adopt(store, submission, next(iter(found))))
        settle_unanswered(store)
        raise refused(f"{family.stage} {family.keys[0][:8]}", str(error)) from error


def _adopt(store: Store, submission: Submission, job_id: str) -> str:
    """Complete the submission of a job that was found by its name: give it its pickles, and record its id."""
    job_id = job_id.split("_")[0]
    tasks = len(submission.tasks)
    names = [f"{job_id}_{index}" for index in range(tasks)] if tasks > 1 else [job_id]
    hand_over(submission_folder(store, submission.token), names)
    write_submission(store, replace(submission, job_id=job_id))
    return job_id
