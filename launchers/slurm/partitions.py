"""What a SLURM cluster says of itself: its configuration and its partitions, two calls of scontrol."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retain.launchers.slurm.client import ask

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class Partition:
    """A partition as `scontrol show partition` has it."""

    name: str
    default: bool
    state: str
    """UP, or DOWN, DRAIN, INACTIVE, which start no jobs."""
    nodes: int
    gpus: int
    """Of all its nodes, as accounting counts them; see `count_gpus`."""
    max_minutes: int | None
    """Longest walltime; None: no limit."""
    preempt_mode: str
    """What becomes of a job that has to make room: OFF, REQUEUE, CANCEL, SUSPEND, GANG."""
    grace_s: int
    """Seconds between the warning and the end of a job that has to make room."""


def read_config() -> dict[str, str]:
    """`scontrol show config`, by SLURM's names; (null) is the empty text. Raises MissingResourceError."""
    return parse_config(ask(["scontrol", "show", "config"]))


def read_partitions() -> list[Partition]:
    """Every partition that this user sees. Raises MissingResourceError."""
    return parse_partitions(ask(["scontrol", "--oneliner", "show", "partition"]))


def count_gpus(partitions: Sequence[Partition]) -> list[Partition]:
    """The partitions with the GPUs that their nodes have, also where the cluster does not account for GPUs.

    Raises MissingResourceError.
    """
    counts = parse_gpus(ask(["sinfo", "--noheader", "--format=%R|%D|%G"]))
    return [replace(part, gpus=max(part.gpus, counts.get(part.name, 0))) for part in partitions]


def parse_gpus(text: str) -> dict[str, int]:
    """GPUs by partition, from lines of partition, nodes and their generic resources, as gpu:a100:4(S:0-1)."""
    counts: dict[str, int] = {}
    for line in text.splitlines():
        name, nodes, resources = (*line.strip().split("|", 2), "", "")[:3]
        each = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", resources))
        counts[name] = counts.get(name, 0) + _count(nodes) * each
    return counts


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
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        nodes=_count(fields.get("TotalNodes", "0")),
        gpus=int(gpus[1]) if gpus else 0,
        max_minutes=minutes(fields.get("MaxTime", "UNLIMITED")),
        preempt_mode=fields.get("PreemptMode", "OFF"),
        grace_s=_count(fields.get("GraceTime", "0")),
    )


def minutes(text: str) -> int | None:
    """Whole minutes of SLURM's [days-]hours:minutes:seconds; None for UNLIMITED, INFINITE or NONE."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minute, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minute


def _count(text: str) -> int:
    """512, or 1.5K as SLURM writes large counts."""
    found = re.match(r"([\d.]+)([KMG]?)", text)
    return int(float(found[1]) * UNITS[found[2]]) if found else 0
