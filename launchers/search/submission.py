"""Starts and ends searches: the checks before one begins, its submission to SLURM, and its cancellation."""

import time

from retain.launchers.jobs.branches import WITH_STUDY, cancel_runs
from retain.launchers.jobs.resources import slurm_resources
from retain.launchers.jobs.submissions import still_live, submitted_job
from retain.launchers.jobs.submit import submit_runs
from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.budget import refuse_hours_on_cpus
from retain.launchers.search.derived_studies import SearchedStudy
from retain.launchers.search.engine import Search
from retain.launchers.search.history import History
from retain.launchers.search.ray.cluster import check_stages
from retain.launchers.search.request import SearchRequest, job_execution, register_search
from retain.launchers.slurm.client import has_slurm, live_jobs
from retain.launchers.slurm.partitions import read_limits
from retain.results.store.lease import held_by, holder, is_held, read_owner
from retain.results.store.runs import Run, Store
from retain.results.store.study_files import HISTORY, POINTS_STUDY, search_run, study_folder
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.notices import Waiting

LEAVING_S = 60.0
"""How long `retain cancel` waits for a search to stop before it cancels the stages: it might submit one more."""


def check_request(searched: SearchedStudy, request: SearchRequest) -> None:
    """Find at once what an attempt would find later.

    Raises StudyError, also if another process searches the study; MissingResourceError if the machine lacks the requested
    devices, or if the user may have too few jobs.
    """
    _refuse_second_search(searched, request.launcher)
    study, history = searched.file.study, searched.folder / HISTORY
    execution = study.execution
    gpus = check_stages(execution, study.stages, request.address) if request.launcher == "ray" else True
    refuse_hours_on_cpus(request.limit(), execution, gpus, study.stages)
    if not history.exists():
        Search(searched, History(history, searched.identity()), request.limit()).check_budget()
    job_execution(searched, request)
    if request.launcher != "slurm":
        return
    file, tree = searched.tree(searched.corners())
    slurm_resources(tree, file, searched.store, request.profile())
    limit = read_limits().jobs
    if limit is not None and limit < 2:
        raise MissingResourceError(
            f"SLURM: you may have {limit} job at a time, and a search needs one in addition to its stages; "
            "search in one allocation with --launcher slurm-ray"
        )


def submit_search(searched: SearchedStudy, request: SearchRequest) -> tuple[str, bool]:
    """Submit a search, unless it has a job already; returns the id of its job, and whether the job is new.

    Raises MissingResourceError if SLURM refuses, and what `check_request` raises.
    """
    store, run = searched.store, searched.run
    if (job := queued_job(store, run)) is not None:
        submit_runs(store, [run.key])  # releases a job that a node could not start
        return job, False
    check_request(searched, request)
    register_search(searched, request)
    submitted = submit_runs(store, [run.key])
    job_id = submitted_job(store, run)
    if job_id is None:
        raise MissingResourceError(
            f"SLURM: you may have {submitted.limit} jobs at a time, and have as many; try again once one has ended"
        )
    return job_id, bool(submitted.jobs)


def queued_job(store: Store, run: Run) -> str | None:
    """The id of the job of a run, if SLURM has not finished with it. Raises MissingResourceError."""
    job_id = submitted_job(store, run)
    live = live_jobs([job_id]) if job_id else {}
    return job_id if job_id and still_live(store, {run.key: job_id}, live) and live[job_id].counts else None


def cancel_search(store: Store, study: str) -> list[str] | None:
    """Cancel the search of a study and its stages; returns the keys of the stages, None if there was nothing to cancel.

    The next start of the search resumes them. Raises MissingResourceError, as `cancel_runs` does.
    """
    run = search_run(store, study)
    # 1. The search itself, so that it submits nothing more.
    try:
        cancelled = bool(cancel_runs(store, [run.key]))
    except MissingResourceError:
        _cancel_stages(store, study)
        raise
    deadline = time.monotonic() + LEAVING_S
    waiting = Waiting(f"waiting up to {LEAVING_S:.0f} s for the search to stop")
    while cancelled and run.is_running() and time.monotonic() < deadline:
        waiting.say(held_by(run.lease))
        time.sleep(0.5)
    # 2. Then the stages that it has submitted.
    stages = _cancel_stages(store, study)
    return stages if stages or cancelled else None


def _cancel_stages(store: Store, study: str) -> list[str]:
    """Cancel the stages that a search has submitted; returns their keys."""
    points = study_folder(store.root, study) / POINTS_STUDY
    keys = with_evaluations(open_study(str(points), (), store.root)).stages if points.exists() else {}
    states = store.states(keys)
    submitted = [key for key, state in states.items() if state.state in ("queued", "running") and state.submission]
    return cancel_runs(store, submitted, WITH_STUDY)


def searched_by(searched: SearchedStudy) -> str:
    """Who searches a study, and what to do, as a sentence."""
    who = holder(searched.run.lease)
    return f"{searched.name}: {who} is searching this study in this store; wait for it, or cancel the search"


def _refuse_second_search(searched: SearchedStudy, launcher: str) -> None:
    """Raise StudyError if another process, or a SLURM job, searches the study."""
    study, run = searched.name, searched.run
    owner = read_owner(run.lease)
    if owner is not None and owner.job_id is None and is_held(run.lease):
        raise StudyError(searched_by(searched))
    if launcher != "ray" or not has_slurm():
        return
    try:
        job = queued_job(searched.store, run)
    except MissingResourceError:
        return  # the lease decides
    if job is not None:
        raise StudyError(f"{study}: SLURM job {job} is searching this study; wait for it, or cancel the search")
