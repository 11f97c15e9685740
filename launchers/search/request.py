"""How a search was started, as its run keeps it: enough for any process, here or in a job, to continue the search."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.reading.report import ignore_progress
from retain.launchers.jobs.resources import minutes_allowed
from retain.launchers.kinds import SEARCH, described
from retain.launchers.planning.register import installed_versions
from retain.launchers.search.budget import Budget, parse_budget
from retain.launchers.search.derived_studies import SearchedStudy, search_of
from retain.results.store.runs import SPEC, Run, Store
from retain.results.store.study_files import search_recipe
from retain.sweeps.base.documents import checked
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.sites import Site

MINUTES = 1440
"""Walltime of a search's job if the study gives none; site and partition may allow less."""
MEMORY_GB = 4.0
"""Memory of the job of a search whose stages are jobs, on sites where memory must be requested."""
DEVICES_A_NODE = 4
"""The number of processes that a node of an allocation holds, if execution.parallel does not say."""
CURE = "delete this file and search the study again, which writes it again"


@dataclass(frozen=True)
class SearchRequest:
    """Where a search trains its stages, and what it may spend."""

    launcher: str
    """ray: here; slurm: each stage is a job of its own; slurm-ray: all stages in one allocation."""
    budget: str | None
    device: str
    """The GPU that a budget of hours is planned for."""
    nodes: int = 1
    """The number of nodes of the allocation of slurm-ray."""
    address: str | None = None
    """The address of a running Ray cluster."""
    dashboard: bool = False
    """Whether Ray shows its dashboard, on localhost; only of ray, without an address."""
    site: dict[str, Any] | None = None
    """The fields of the site profile that jobs are submitted with."""

    def profile(self) -> Site | None:
        """The site profile; None if there is none."""
        return None if self.site is None else Site.model_validate(self.site)

    def limit(self) -> Budget | None:
        """The budget; None if there is none. Raises StudyError."""
        return None if self.budget is None else parse_budget(self.budget, self.device)


def register_search(searched: SearchedStudy, request: SearchRequest) -> Run:
    """Enter a search into the store as a planned run, or plan it again. Raises StudyError.

    The run keeps the fields of the study with overrides applied: later edits of the study file change nothing.
    """
    run, study = searched.run, searched.file.study
    run.retry(reopen=True)
    asked = asdict(request) | {
        "path": str(searched.file.path.absolute()),
        "fields": study.model_dump(exclude_unset=True, mode="json"),
    }
    spec = {
        "key": run.key,
        "format": 1,
        "stage": SEARCH.name,
        "parent": None,
        "recipe": search_recipe(searched.name),
        **described(SEARCH, searched.space.block.trials, []),
        "evaluation": {},
        "execution": job_execution(searched, request) | {"request": asked},
        "axes": {},
        "study": searched.name,
        "versions": installed_versions(),
    }
    searched.store.register(run.key, spec)
    return run


def read_request(run: Run) -> SearchRequest:
    """How a registered search was started."""
    return checked(_asked(run), SearchRequest, f"{run.folder / SPEC}: execution.request", CURE)


def requested_study(run: Run, store: Store) -> SearchedStudy:
    """The study of a registered search, its data prepared. Raises StudyError, MissingResourceError."""
    asked = _asked(run)
    return search_of(check_study(asked["fields"], Path(asked["path"])), store.root, ignore_progress)


def _asked(run: Run) -> Mapping[str, Any]:
    """The request in the stage.json of a search. Raises DamageError."""
    asked: Mapping[str, Any] | None = run.spec()["execution"].get("request")
    if asked is None:
        raise DamageError(f"{run.folder / SPEC}: execution lacks the field request; {CURE}")
    return asked


def job_execution(searched: SearchedStudy, request: SearchRequest) -> dict[str, Any]:
    """What the job of a search asks of SLURM: little if stages are jobs; for an allocation, room on each node for stages.

    Raises StudyError.
    """
    site, nodes = request.profile(), request.nodes
    own = searched.file.study.execution.of_stage("driver", site)
    if request.launcher == "ray":
        return own.model_dump(mode="json")
    cpus, memory, gpus = 1, min(MEMORY_GB, own.slurm.memory_gb) if own.slurm.memory_gb else None, 0
    if request.launcher == "slurm-ray":
        cpus, memory, gpus = _node_room(searched, nodes, site)
    minutes = minutes_allowed(own, site, MINUTES, searched.file.path.name)
    slurm: dict[str, Any] = {"nodes": nodes, "cpus": cpus, "memory_gb": memory, "minutes": minutes}
    if not gpus and "gpu" in (own.slurm.gres or ""):
        slurm["gres"] = None  # the site's own words for the GPUs of a stage
    execution = own.model_copy(update={"devices": nodes, "slurm": own.slurm.model_copy(update=slurm)})
    return execution.model_dump(mode="json") | {"gpus_per_node": gpus}


def _node_room(searched: SearchedStudy, nodes: int, site: Site | None) -> tuple[int, float | None, int]:
    """CPUs, memory (GB) and GPUs of one node of an allocation, for its share of the stages. Raises StudyError."""
    execution = searched.file.study.execution
    stages = [execution.of_stage(stage, site) for stage in searched.file.study.stages]
    if any(stage.slurm.nodes > 1 for stage in stages):
        raise StudyError(
            f"{searched.file.path.name}: execution.slurm.nodes: a search on Ray trains a stage on one node; leave it 1, "
            "or search with --launcher slurm"
        )
    devices = max(stage.devices for stage in stages)
    at_once = math.ceil(execution.parallel / nodes) if execution.parallel else max(1, DEVICES_A_NODE // devices)
    cpus = max(stage.devices * max(stage.slurm.cpus, stage.threads) for stage in stages)
    memory = max(stage.slurm.memory_gb or 0 for stage in stages) * at_once or None
    on_gpus = any(stage.accelerator != "cpu" for stage in stages)
    return at_once * cpus, memory, at_once * devices if on_gpus else 0
