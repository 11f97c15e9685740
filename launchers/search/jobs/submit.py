"""Submitting a search as a SLURM job of its own, once, and taking it back."""

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from retain.launchers.jobs.backlog import outside_job
from retain.launchers.jobs.branches import WITH_STUDY, cancel_runs
from retain.launchers.jobs.code_snapshot import snapshot_code
from retain.launchers.jobs.resources import driver_minutes, slurm_resources
from retain.launchers.jobs.sbatch import Request, executor, hand_over
from retain.launchers.jobs.submit import alone
from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.budget import parse_budget, refuse_hours_on_cpus
from retain.launchers.search.derived_studies import SearchedStudy
from retain.launchers.search.engine import Search
from retain.launchers.search.history import History
from retain.launchers.search.jobs.driver import RunSearch
from retain.launchers.search.jobs.record import (
    SearchJob,
    forget_search_job,
    mark_cancelled,
    read_end,
    read_search_job,
    write_search_job,
)
from retain.launchers.slurm.client import Job, cancel_jobs, live_jobs, read_limits, release_jobs
from retain.results.store.lease import is_held, read_owner
from retain.results.store.loss_table import study_folder
from retain.results.store.runs import Store
from retain.results.store.study_files import HISTORY, POINTS_STUDY
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.execution import Slurm
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.tree import STAGES

MINUTES = 1440
"""Walltime of one life where the study gives none; site and partition may allow less."""
MEMORY_GB = 4.0
"""Of a driver, on sites where memory is asked for."""
DEVICES_A_NODE = 4
"""Processes that a node of an allocation holds, where execution.parallel does not say."""
LEAVING_S = 60.0
"""How long `retain cancel` waits for a driver to end before it takes the stages back: it might submit one more."""


def new_search_job(
    searched: SearchedStudy, launcher: str, nodes: int, budget: str | None, device: str, site: Site | None
) -> SearchJob:
    """What a search asks for; nothing is submitted or written."""
    return SearchJob(
        study=searched.name,
        token=os.urandom(6).hex(),
        launcher=launcher,
        nodes=nodes,
        path=str(searched.file.path.absolute()),
        fields=searched.file.study.model_dump(exclude_unset=True, mode="json"),
        budget=budget,
        device=device,
        site=None if site is None else site.model_dump(exclude_unset=True, mode="json"),
        when=time.time(),
    )


def check_job(searched: SearchedStudy, wanted: SearchJob) -> None:
    """Find at once what SLURM or a driver would find hours later.

    Raises StudyError, also where a process of this machine, such as another `retain search`, searches the study;
    MissingResourceError where the user may have too few jobs.
    """
    lease = searched.folder / "search-lease.json"
    owner = read_owner(lease)
    if owner is not None and owner.is_here() and owner.job_id is None and is_held(lease):
        raise StudyError(f"{searched.name}: process {owner.pid} searches this study in this store; stop it first")
    _check_budget(searched, wanted)
    _asked(searched, wanted)
    if wanted.launcher == "slurm-ray":
        return
    ends = {f"end{number}": values for number, values in enumerate(searched.search.corners())}
    file, tree = searched.tree(ends)
    slurm_resources(tree, file, searched.store, wanted.profile())
    limit = read_limits().jobs
    if limit is not None and limit < 2:
        raise MissingResourceError(
            f"SLURM: you may have {limit} job at a time, and a search takes one beside its stages; "
            "train them in one allocation with --launcher slurm-ray"
        )


def _check_budget(searched: SearchedStudy, wanted: SearchJob) -> None:
    """Raise StudyError for hours on CPUs, and where a search that begins could not try a single point."""
    budget = parse_budget(wanted.budget, wanted.device) if wanted.budget is not None else None
    refuse_hours_on_cpus(budget, searched.file.study.execution, gpus=True)
    history = searched.folder / HISTORY
    if not history.exists():
        Search(searched, History(history, searched.identity()), budget, 1).check_budget()


def submit_search(searched: SearchedStudy, wanted: SearchJob) -> tuple[SearchJob, bool]:
    """Submit a search, unless a job of the study's is queued or running; the job, and whether it is new.

    Raises MissingResourceError where SLURM refuses, and what `check_job` does.
    """
    with alone(searched.store):
        known = read_search_job(searched.store, wanted.study)
        if known is not None and (job := queued_job(known)) is not None:
            if known.job_id is None:
                known = replace(known, job_id=job.job_id)
                hand_over(known.files(searched.store), [job.job_id])
                write_search_job(searched.store, known)
            if job.failed_to_start:
                release_jobs([job.job_id])
            return known, False
        check_job(searched, wanted)
        request, slurm = _asked(searched, wanted)
        code = snapshot_code(searched.store.root)
        # Before sbatch is called, so that a job whose sbatch gives no answer is found by its name.
        write_search_job(searched.store, wanted)
        return _submit(searched.store, wanted, request, slurm, code), True


def queued_job(known: SearchJob) -> Job | None:
    """The job of a search, where it waits or runs. Raises MissingResourceError."""
    job = _live_job(known)
    return job if job is not None and job.counts else None


def _live_job(known: SearchJob) -> Job | None:
    return known.found_in(live_jobs(name=known.name) if known.job_id is None else live_jobs([known.job_id]))


def cancel_search(store: Store, known: SearchJob) -> list[str] | None:
    """End a search's job for good, and take its stages back from SLURM; their keys, None where there was neither.

    The next start of the search takes them up again. Raises MissingResourceError.
    """
    job = _live_job(known)
    if job is not None and not job.counts and read_end(known.files(store)) is not None:
        job = None
    if job is not None:  # also one that ends, as it may be on its way back into the queue
        mark_cancelled(known.files(store))
        cancel_jobs([job.job_id])
        deadline = time.monotonic() + LEAVING_S
        while job.job_id in live_jobs([job.job_id]) and time.monotonic() < deadline:
            time.sleep(1.0)
    taken = cancel_runs(store, _submitted_points(store, known.study), WITH_STUDY)
    return taken if taken or job is not None else None


def _submitted_points(store: Store, study: str) -> list[str]:
    """The stages of a search's points that have been submitted and have not ended."""
    points = study_folder(store.root, study) / POINTS_STUDY
    if not points.exists():
        return []
    states = {key: store.run(key).state() for key in open_study(str(points), (), store.root).tree.stages}
    return [key for key, state in states.items() if state.state in ("queued", "running") and state.submission]


def _submit(store: Store, wanted: SearchJob, request: Request, slurm: Slurm, code: Path) -> SearchJob:
    """One sbatch; a job whose sbatch gave no answer is looked for by its name."""
    root = str(store.root.absolute())
    last_line = [sys.executable, "-m", "retain.launchers.search.jobs.driver", root, wanted.study, wanted.token]
    submitter = executor(wanted.files(store), request, slurm, last_line, code)
    call = RunSearch(root, wanted.study, wanted.token)
    with outside_job():
        try:
            job_id = submitter.submit(_call, call).job_id
        except Exception as error:
            found = live_jobs(name=wanted.name)
            if not found:
                forget_search_job(store, wanted)
                reason = " ".join(str(error).split())[-300:]
                raise MissingResourceError(f"SLURM: sbatch refused the search of {wanted.study}: {reason}") from error
            job_id = next(iter(found))
            hand_over(wanted.files(store), [job_id])
    answered = replace(wanted, job_id=job_id)
    write_search_job(store, answered)
    return answered


def _call(search: RunSearch) -> str:
    return search()


def _asked(searched: SearchedStudy, wanted: SearchJob) -> tuple[Request, Slurm]:
    """What the job asks of SLURM: little for a driver; for an allocation, room on each node. Raises StudyError."""
    execution = searched.file.study.execution
    site = wanted.profile()
    own = execution.of_stage("driver", site)
    cpus, memory, gpus = 1, min(MEMORY_GB, own.slurm.memory_gb) if own.slurm.memory_gb else None, 0
    if wanted.launcher == "slurm-ray":
        cpus, memory, gpus = _room(searched.file, wanted.nodes, site)
    request = Request(
        name=wanted.name,
        comment=f"retain search {wanted.study} of {searched.store.root}",
        minutes=driver_minutes(own, site, MINUTES, searched.file.path.name),
        nodes=wanted.nodes,
        tasks=1,
        cpus=cpus,
        memory_gb=memory,
        gpus=gpus,
    )
    # A number of GPUs that a study or site names in its own words is that of a stage.
    literal = not gpus and "gpu" in (own.slurm.gres or "")
    return request, own.slurm.model_copy(update={"gres": None}) if literal else own.slurm


def _room(file: StudyFile, nodes: int, site: Site | None) -> tuple[int, float | None, int]:
    """CPUs, memory (GB) and GPUs of one node of an allocation, for its share of the stages. Raises StudyError."""
    execution = file.study.execution
    kinds = [execution.of_stage(kind, site) for kind in STAGES]
    if any(kind.slurm.nodes > 1 for kind in kinds):
        raise StudyError(
            f"{file.path.name}: execution.slurm.nodes: a search on Ray trains a stage on one node; leave it 1, "
            "or search with --launcher slurm"
        )
    devices = max(kind.devices for kind in kinds)
    stages = math.ceil(execution.parallel / nodes) if execution.parallel else max(1, DEVICES_A_NODE // devices)
    cpus = max(kind.devices * max(kind.slurm.cpus, kind.threads) for kind in kinds)
    memory = max(kind.slurm.memory_gb or 0 for kind in kinds) * stages or None
    on_gpus = any(kind.accelerator != "cpu" for kind in kinds)
    return stages * cpus, memory, stages * devices if on_gpus else 0
