"""The configuration, the partitions and the limits of a SLURM cluster, from scontrol, sinfo and sacctmgr."""

import os
import pwd
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retain.launchers.slurm.client import ask, live_jobs, seconds
from retain.sweeps.base.errors import MissingResourceError

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a partition that are alike."""

    nodes: int
    gpus: int
    """GPUs of one node."""
    cpus: int
    """CPUs of one node, as SLURM counts them."""
    memory_mb: int
    """Memory of one node; 1 where the site has not entered it."""


@dataclass(frozen=True)
class Partition:
    """A partition, as `scontrol show partition` prints it."""

    name: str
    default: bool
    state: str
    """UP, or DOWN, DRAIN or INACTIVE, in which no jobs start."""
    nodes: int
    gpus: int
    """GPUs of all its nodes, as accounting counts them; see `with_nodes`."""
    max_minutes: int | None
    """The longest walltime in whole minutes; None: no limit."""
    preempt_mode: str
    """What happens to a preempted job: OFF, REQUEUE, CANCEL, SUSPEND or GANG."""
    grace_s: int
    """Seconds between the warning and the end of a preempted job."""
    groups: tuple[NodeGroup, ...] = ()
    """Its nodes; empty if they are unknown."""


@dataclass(frozen=True)
class Limits:
    """How many jobs one user may submit."""

    array_tasks: int
    """The most tasks of one array (MaxArraySize - 1)."""
    jobs: int | None
    """The most jobs queued or running at a time (MaxSubmitJobs of the user's QOS or association); None: no known limit."""


def read_config() -> dict[str, str]:
    """The settings of `scontrol show config` by name; (null) becomes an empty string. Raises MissingResourceError."""
    return parse_config(ask(["scontrol", "show", "config"]))


def read_partitions() -> list[Partition]:
    """All partitions that this user may see. Raises MissingResourceError."""
    return parse_partitions(ask(["scontrol", "--oneliner", "show", "partition"]))


def read_limits(config: Mapping[str, str] | None = None) -> Limits:
    """The cluster's largest array, and the user's MaxSubmitJobs if accounting knows one. config: asked for if it is None."""
    size = (config or read_config()).get("MaxArraySize", "1001")
    return Limits(max(1, int(size) - 1), _max_submit_jobs())


def room_within(limits: Limits) -> int | None:
    """How many more jobs the user may have; None: no known limit. Raises MissingResourceError."""
    return None if limits.jobs is None else limits.jobs - sum(job.counts for job in live_jobs().values())


def _max_submit_jobs() -> int | None:
    """The smallest MaxSubmitJobs of the user's associations and their QOS; None without accounting or a limit."""
    if shutil.which("sacctmgr") is None:
        return None
    show, user = ["sacctmgr", "--noheader", "--parsable2", "show"], _user()
    try:
        associations = ask([*show, "assoc", f"user={user}", "format=MaxSubmitJobs,QOS"], 10).splitlines()
        limits = [line.split("|")[0] for line in associations]
        if named := {name for line in associations for name in line.split("|")[-1].split(",") if name}:
            limits += ask([*show, "qos", ",".join(sorted(named)), "format=MaxSubmitJobsPerUser"], 10).splitlines()
    except MissingResourceError:
        return None
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


def with_nodes(partitions: Sequence[Partition]) -> list[Partition]:
    """The partitions with their nodes, whose GPUs sinfo knows even if the cluster does not account for GPUs.

    Raises MissingResourceError.
    """
    found = parse_nodes(ask(["sinfo", "--noheader", "--exact", "--format=%R|%D|%G|%c|%m"]))
    known = [(part, found.get(part.name, ())) for part in partitions]
    return [
        replace(part, gpus=max(part.gpus, sum(group.nodes * group.gpus for group in groups)), groups=tuple(groups))
        for part, groups in known
    ]


def parse_nodes(text: str) -> dict[str, list[NodeGroup]]:
    """Nodes by partition, from lines such as `low|3|gpu:a100:4(S:0-1)|64|512000`: name, nodes, GPUs, CPUs, memory in MB."""
    found: dict[str, list[NodeGroup]] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 5:
            gpus = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", fields[2]))
            group = NodeGroup(_count(fields[1]), gpus, _count(fields[3]), _count(fields[4]))
            found.setdefault(fields[0], []).append(group)
    return found


def parse_config(text: str) -> dict[str, str]:
    pairs = re.findall(r"^(\S+)\s*=[ \t]*(.*?)\s*$", text, re.MULTILINE)
    return {name: "" if value == "(null)" else value for name, value in pairs}


def parse_partitions(text: str) -> list[Partition]:
    found = []
    for line in text.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "PartitionName" in fields:
            found.append(_partition(fields))
    return found


def _partition(fields: Mapping[str, str]) -> Partition:
    gpus = re.search(r"gres/gpu=(\d+)", fields.get("TRES", ""))
    walltime_s = seconds(fields.get("MaxTime", "UNLIMITED"))
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        nodes=_count(fields.get("TotalNodes", "0")),
        gpus=int(gpus[1]) if gpus else 0,
        max_minutes=None if walltime_s is None else walltime_s // 60,
        preempt_mode=fields.get("PreemptMode", "OFF"),
        grace_s=_count(fields.get("GraceTime", "0")),
    )


def _count(text: str) -> int:
    """A count such as 512, or 1.5K as SLURM prints large ones."""
    found = re.match(r"([\d.]+)([KMG]?)", text)
    return int(float(found[1]) * UNITS[found[2]]) if found else 0


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name: SLURM takes the number too
        return str(os.getuid())
