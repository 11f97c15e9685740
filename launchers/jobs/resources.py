"""The resources that the stages of a study request from SLURM: the options of site and study, and a walltime."""

import contextlib
import json
import math
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retain.launchers.planning.register import EVALUATIONS_OF_A_JOB, one_device
from retain.launchers.slurm.client import has_slurm
from retain.launchers.slurm.partitions import Partition, read_config, read_partitions, with_nodes
from retain.results.analysis.axes import grouped
from retain.results.analysis.throughput import measured_speeds
from retain.results.store.runs import Store
from retain.results.store.state import StateSummary
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.execution import Slurm, StageExecution
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.sites import Site, choose_site, read_sites
from retain.sweeps.tree.throughput import model_text, work_text
from retain.sweeps.tree.tree import Stage, Tree

UNMEASURED_MINUTES = 240
"""The walltime if no done run has measured the speed of the stage."""
MARGIN, START_MINUTES = 1.5, 10
"""An estimated walltime is the measured training time of all runs of a pack times MARGIN, plus START_MINUTES for starting,
evaluating and saving."""


@dataclass(frozen=True)
class Resources:
    """The resources of one stage."""

    execution: StageExecution
    walltime: str
    """The walltime and where it comes from, as text."""
    estimated: bool = True
    """Whether the study leaves the walltime to Retain."""


def as_executions(resources: Mapping[str, Resources]) -> dict[str, dict[str, Any]]:
    """The field `execution` of each stage.json, by key."""
    executions: dict[int, dict[str, Any]] = {}  # of siblings, which share their resources
    for own in resources.values():
        if id(own) not in executions:
            executions[id(own)] = own.execution.model_dump(mode="json")
    return {key: executions[id(own)] for key, own in resources.items()}


def find_site(wanted: str | None) -> tuple[str, Site] | None:
    """The site profile to submit with: the one named, or the one that matches this machine. Raises StudyError."""
    sites = read_sites()
    return choose_site(sites, wanted, machine_names() if sites and wanted is None else ())


def machine_names() -> list[str]:
    """This host's name, without and with its domain, and the name of its SLURM cluster."""
    host = socket.gethostname()
    cluster = ""
    if has_slurm():
        with contextlib.suppress(MissingResourceError):
            cluster = read_config().get("ClusterName", "")
    return list(dict.fromkeys(name for name in (host.partition(".")[0], host, cluster) if name))


def slurm_resources(
    tree: Tree,
    file: StudyFile,
    store: Store,
    site: Site | None,
    partitions: Sequence[Partition] | None = None,
    evaluations: Mapping[str, Stage] | None = None,
    states: Mapping[str, StateSummary] | None = None,
) -> dict[str, Resources]:
    """The resources of every stage, by key; siblings have the same walltime, so that they form one array.

    partitions: those of the cluster; None: ask SLURM, and assume no limits if SLURM does not answer. evaluations: those of
    stages of the tree, by key, which get resources too; those after stages of one name have the same. states: those of
    runs that have been read already. Raises StudyError if the study gives a walltime that its partition does not allow, or
    asks for more than its nodes have.
    """
    if partitions is None:
        partitions = _partitions_here()
    models: dict[str, str] = {}
    siblings: dict[tuple[str, str | None, str], list[Stage]] = {}
    for stage in tree.stages.values():
        models[stage.key] = models[stage.parent] if stage.parent else model_text(json.loads(stage.recipe))
        siblings.setdefault((stage.stage, stage.parent, models[stage.key]), []).append(stage)
    executions = {name: file.study.execution.of_stage(name, site) for name in tree.chain}
    unknown = any(execution.slurm.minutes is None for execution in executions.values())
    speed = measured_speeds(store, states) if unknown else lambda *_: None
    resources: dict[str, Resources] = {}
    for (name, _, model), stages in siblings.items():
        execution = executions[name]
        _check_nodes(execution, partitions, file.path.name)
        tokens = max(stage.tokens for stage in stages) * min(execution.pack, len(stages))
        longest = _longest(execution, site, partitions, file.path.name)
        works = {work_text(stage.recipe) for stage in stages}
        slowest = _slowest([speed(name, model, work, execution.devices, None) for work in works])
        own = _with_walltime(execution, tokens, slowest, longest)
        _check_warning(own.execution.slurm, file.path.name)
        resources |= dict.fromkeys((stage.key for stage in stages), own)
    for name, those in grouped((evaluations or {}).values(), lambda one: tree.stages[one.parent or ""].stage).items():
        execution = executions[name]
        longest = _longest(execution, site, partitions, file.path.name)
        kinds = {
            (models[stage.key], work_text(stage.recipe)) for stage in (tree.stages[one.parent or ""] for one in those)
        }
        slowest = _slowest([speed(name, *kind, execution.devices, None) for kind in kinds])
        own = _of_evaluations(those, execution, slowest, longest)
        _check_warning(own.execution.slurm, file.path.name)
        resources |= dict.fromkeys((one.key for one in those), own)
    return resources


def _of_evaluations(
    those: Sequence[Stage], execution: StageExecution, speed: float | None, longest: tuple[int, str] | None
) -> Resources:
    """The resources of evaluations of stages that are executed in one way. speed: at which the stages train, where known."""
    # How long a task takes is not known.
    known = speed / execution.devices if speed is not None and all(one.tokens for one in those) else None
    tokens = max(one.tokens for one in those) * min(len(those), EVALUATIONS_OF_A_JOB)
    return _with_walltime(one_device(execution), tokens, known, longest)


def _slowest(speeds: Collection[float | None]) -> float | None:
    """The lowest of some measured speeds; None if one is unknown."""
    known = [speed for speed in speeds if speed is not None]
    return min(known) if len(known) == len(speeds) else None


def minutes_allowed(execution: StageExecution, site: Site | None, wanted: int, file: str) -> int:
    """The walltime in minutes of a job that trains no stage: that of the study, or `wanted` if partition and site allow it.

    Raises StudyError if the study gives a walltime that its partition does not allow.
    """
    longest = _longest(execution, site, _partitions_here(), file)
    minutes = execution.slurm.minutes or (min(wanted, longest[0]) if longest else wanted)
    _check_warning(execution.slurm.model_copy(update={"minutes": minutes}), file)
    return minutes


def _partitions_here() -> list[Partition]:
    if has_slurm():
        with contextlib.suppress(MissingResourceError):
            return with_nodes(read_partitions())
    return []


def _longest(
    execution: StageExecution, site: Site | None, partitions: Sequence[Partition], file: str
) -> tuple[int, str] | None:
    """The longest allowed walltime in minutes, and what limits it; None without a limit.

    Raises StudyError if the walltime of the study is longer than every partition allows.
    """
    slurm = execution.slurm
    limits = [(part.max_minutes, f"partition {part.name}") for part in _chosen(slurm, partitions)]
    bounded = [(limit, source) for limit, source in limits if limit is not None]
    if slurm.minutes and bounded and len(bounded) == len(limits) and slurm.minutes > max(bounded)[0]:
        limit, source = max(bounded)
        raise StudyError(
            f"{file}: execution.slurm.minutes: {slurm.minutes} is more than {source} allows ({limit}), so the job would "
            "never start; a longer stage continues in its next attempt, so ask for less"
        )
    if site is not None and site.minutes is not None:
        bounded.append((site.minutes, "the site's profile"))
    return min(bounded, default=None)


def _chosen(slurm: Slurm, partitions: Sequence[Partition]) -> list[Partition]:
    """The partitions that SLURM may choose for a job."""
    names = slurm.partition.split(",") if slurm.partition else [part.name for part in partitions if part.default]
    return [part for part in partitions if part.name in names]


def _check_nodes(execution: StageExecution, partitions: Sequence[Partition], file: str) -> None:
    """Raise StudyError if no partition has enough nodes for a stage: SLURM lets some such jobs wait forever."""
    slurm, chosen = execution.slurm, _chosen(execution.slurm, partitions)
    groups = [group for part in chosen for group in part.groups]
    if not chosen or not all(part.groups for part in chosen):
        return
    tasks = execution.devices // slurm.nodes
    gpus = tasks if execution.accelerator != "cpu" and slurm.gres is None else 0
    memory_mb = int((slurm.memory_gb or 0) * 1024)
    where = f"partition {' or '.join(part.name for part in chosen)}"
    limits = (
        ("devices", f"{gpus} GPUs on a node", gpus, max(group.gpus for group in groups)),
        ("slurm.cpus", f"{tasks * slurm.cpus} CPUs on a node", tasks * slurm.cpus, max(group.cpus for group in groups)),
        ("slurm.memory_gb", f"{memory_mb} MB on a node", memory_mb, max(group.memory_mb for group in groups)),
        ("slurm.nodes", f"{slurm.nodes} nodes", slurm.nodes, max(sum(g.nodes for g in part.groups) for part in chosen)),
    )
    for field, asked, wanted, most in limits:
        if wanted > most and not (field == "slurm.memory_gb" and most <= 1):
            cure = "ask for less"
            if field == "devices":
                cure = "spread them over more execution.slurm.nodes" if most else "set execution.accelerator=cpu"
            raise StudyError(
                f"{file}: execution.{field}: a stage asks for {asked}, and {where} has at most {most}, so its job would "
                f"never start; {cure}, or choose another execution.slurm.partition"
            )


def _check_warning(slurm: Slurm, file: str) -> None:
    assert slurm.minutes is not None
    if slurm.warning_seconds >= 60 * slurm.minutes:
        raise StudyError(
            f"{file}: execution.slurm.warning_seconds: a warning {slurm.warning_seconds} s before the end comes at the "
            f"start of a job of {slurm.minutes} minutes, so no step would be trained; shorten it, or increase slurm.minutes"
        )


def _with_walltime(
    execution: StageExecution, tokens: int, speed: float | None, longest: tuple[int, str] | None
) -> Resources:
    """An execution with its walltime. tokens: those of all runs of a job; speed: measured, in tokens per second."""
    if execution.slurm.minutes is not None:
        return Resources(execution, f"{execution.slurm.minutes} minutes, as the study says", estimated=False)
    if speed is None:
        wanted, why = (
            UNMEASURED_MINUTES,
            "no done run has measured the speed of this stage, model and number of devices",
        )
    else:
        wanted = math.ceil(tokens / speed / 60 * MARGIN) + START_MINUTES
        why = f"{MARGIN:g} times {format_size(tokens)} tokens at {format_size(speed)} tokens/s, and {START_MINUTES}"
    if longest is not None and wanted > longest[0]:
        wanted, why = longest[0], f"{why}; cut from {wanted}, the limit of {longest[1]}"
    slurm = execution.slurm.model_copy(update={"minutes": wanted})
    return Resources(execution.model_copy(update={"slurm": slurm}), f"{wanted} minutes: {why}")
