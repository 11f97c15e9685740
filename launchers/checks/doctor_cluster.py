"""What a SLURM cluster's settings mean for Retain, one sentence each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retain.launchers.checks.finding import NOTE, OK, Finding
from retain.launchers.slurm.client import ask, seconds
from retain.launchers.slurm.partitions import (
    Limits,
    Partition,
    read_config,
    read_limits,
    read_partitions,
    with_nodes,
)
from retain.sweeps.base.errors import MissingResourceError

CREDENTIAL_S = 120
"""SLURM's cred_expire if AuthInfo does not set another."""
NO_PREEMPTION, BY_QOS = "preempt/none", "preempt/qos"


@dataclass(frozen=True)
class Qos:
    """A quality of service: whom it preempts, and how its own jobs are preempted."""

    name: str
    preempts: str
    preempt_mode: str
    grace_s: int


@dataclass(frozen=True)
class Cluster:
    """The settings of a cluster."""

    config: Mapping[str, str]
    """`scontrol show config`."""
    partitions: Sequence[Partition]
    limits: Limits
    qos: Sequence[Qos]
    """Empty unless the cluster preempts by QOS."""

    @property
    def user_signal(self) -> bool:
        """Whether a preempted job gets the signal that it asked for; newer versions of SLURM moved the option."""
        options = f"{self.setting('SlurmctldParameters')},{self.setting('PreemptParameters')}"
        return any(re.fullmatch(r"(preempt_)?send_user_signal", option) for option in options.lower().split(","))

    @property
    def requeues(self) -> bool:
        """Whether jobs are requeued without asking for it."""
        return self.setting("JobRequeue") == "1"

    @property
    def kill_wait_s(self) -> int:
        """Seconds between TERM and KILL at a time limit, from a setting such as `30 sec`."""
        found = re.match(r"\d+", self.setting("KillWait"))
        return int(found[0]) if found else 30

    @property
    def accounting(self) -> bool:
        return "slurmdbd" in self.setting("AccountingStorageType")

    def setting(self, name: str) -> str:
        return self.config.get(name, "")

    def as_json(self) -> dict[str, Any]:
        return {
            "cluster": self.setting("ClusterName"),
            "version": self.setting("SLURM_VERSION"),
            "partitions": [asdict(partition) for partition in self.partitions],
            "max_array_size": self.limits.array_tasks + 1,
            "max_submit_jobs": self.limits.jobs,
            "preempt_type": self.setting("PreemptType"),
            "preempt_mode": self.setting("PreemptMode"),
            "preempt_send_user_signal": self.user_signal,
            "qos": [asdict(qos) for qos in self.qos],
            "job_requeue": self.requeues,
            "kill_wait_s": self.kill_wait_s,
            "accounting": self.accounting,
        }


def read_cluster() -> Cluster:
    """Ask the cluster. Raises MissingResourceError if it does not answer."""
    config = read_config()
    qos = _read_qos() if config.get("PreemptType") == BY_QOS else []
    return Cluster(config, with_nodes(read_partitions()), read_limits(config), qos)


def _read_qos() -> list[Qos]:
    """Every quality of service; none if accounting does not answer."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,Preempt,PreemptMode,GraceTime"]
    try:
        rows = [line.split("|") for line in ask(command, 10).splitlines() if line.count("|") == 3]
    except MissingResourceError:
        return []
    return [Qos(name, preempts, mode, seconds(grace) or 0) for name, preempts, mode, grace in rows]


def cluster_findings(cluster: Cluster) -> list[Finding]:
    """What each setting means, and the cure if one is in the way."""
    version, name = cluster.setting("SLURM_VERSION"), cluster.setting("ClusterName")
    return [
        Finding("SLURM", OK, f"{version}, cluster {name}"),
        *_partitions(cluster),
        *_limits(cluster),
        *_preemption(cluster),
        *_endings(cluster),
    ]


def _partitions(cluster: Cluster) -> Iterator[Finding]:
    if not cluster.partitions:
        yield Finding("partitions", NOTE, "you see none; ask the site for an account, and name it in sites.yaml")
        return
    for partition in cluster.partitions:
        limit = partition.max_minutes
        most = f"at most {limit} minutes an attempt" if limit else "no limit of walltime"
        what = f"{partition.nodes} nodes, {partition.gpus or 'no'} GPUs, {most}"
        if partition.default:
            what += ", the default one"
        if partition.state != "UP":
            what += f"; it is {partition.state}, so jobs there wait"
        yield Finding(f"partition {partition.name}", OK if partition.state == "UP" else NOTE, what)
    if not any(partition.default for partition in cluster.partitions):
        what = "none is the default; name one as execution.slurm.partition or in sites.yaml"
        yield Finding("partitions", NOTE, what)


def _limits(cluster: Cluster) -> Iterator[Finding]:
    tasks, jobs = cluster.limits.array_tasks, cluster.limits.jobs
    yield Finding("MaxArraySize", OK, f"{tasks + 1}: more than {tasks} siblings are submitted as several arrays")
    if jobs is not None:
        yield Finding("MaxSubmitJobs", OK, f"{jobs} jobs of yours at a time; jobs that end submit the runs beyond that")
    elif cluster.accounting:
        yield Finding("MaxSubmitJobs", OK, "no limit is known")
    else:
        what = "this site keeps no accounting, so no limit is known; Retain asks only squeue and its own store"
        yield Finding("accounting", OK, what)


def _preemption(cluster: Cluster) -> Iterator[Finding]:
    """How jobs are preempted, then what is special about each partition or QOS whose jobs are preempted."""
    kind = cluster.setting("PreemptType") or NO_PREEMPTION
    if kind == NO_PREEMPTION:
        yield Finding("preemption", OK, "no job is preempted here")
        return
    if kind == BY_QOS:
        rows = [(f"QOS {qos.name}", qos.preempt_mode, qos.grace_s) for qos in cluster.qos]
    else:
        rows = [(partition.name, partition.preempt_mode, partition.grace_s) for partition in cluster.partitions]
    default = cluster.setting("PreemptMode")
    modes = [(where, (default if mode in ("", "cluster") else mode).upper(), grace) for where, mode, grace in rows]
    preempted = [(where, mode, grace) for where, mode, grace in modes if mode != "OFF"]
    graces = ", ".join(f"{grace} s in {where}" for where, _, grace in preempted) or "unknown"
    if cluster.user_signal:
        what = (
            f"{kind} with preempt_send_user_signal: a preempted job is warned, saves a checkpoint and returns to the queue "
            f"within GraceTime ({graces})"
        )
        yield Finding("preemption", OK, what)
    else:
        what = (
            "this site sends no user signal at preemption: a preempted job has GraceTime seconds after TERM to save "
            f"({graces}), else it loses at most execution.save_minutes (10 by default); if GraceTime is short, lower "
            "save_minutes, or ask the site for preempt_send_user_signal"
        )
        yield Finding("preemption", NOTE, what)
    for where, mode, grace in preempted:
        yield from _preemption_in(where, mode, grace, cluster.kill_wait_s)


def _preemption_in(where: str, mode: str, grace_s: int, kill_wait_s: int) -> Iterator[Finding]:
    if "CANCEL" in mode:
        what = (
            "a preempted job is cancelled, not requeued: it requeues itself if it has saved within GraceTime "
            f"({grace_s} s), else it must be submitted again"
        )
        yield Finding(f"preemption in {where}", NOTE, what)
    elif "SUSPEND" in mode:
        yield Finding(
            f"preemption in {where}", OK, "a preempted job is suspended, and continues later where it stopped"
        )
    elif grace_s == 0:
        what = (
            f"GraceTime 0: a preempted job has KillWait ({kill_wait_s} s) between TERM and KILL to save; lower "
            "execution.save_minutes if a checkpoint takes longer"
        )
        yield Finding(f"preemption in {where}", NOTE, what)


def _endings(cluster: Cluster) -> Iterator[Finding]:
    what = "1" if cluster.requeues else "0: jobs are not requeued unless they ask"
    yield Finding("JobRequeue", OK, f"{what}; Retain's jobs ask (--requeue), so they return after a node fails")
    what = f"{cluster.kill_wait_s} s between TERM and KILL at a time limit"
    yield Finding("KillWait", OK, f"{what}; a job is warned execution.slurm.warning_seconds (120) before it")
    found = re.search(r"cred_expire=(\d+)", cluster.setting("AuthInfo"))
    wait = int(found[1]) if found else CREDENTIAL_S
    yield Finding("requeue", OK, f"a requeued job starts again after {wait + 1} s at the earliest (cred_expire)")
