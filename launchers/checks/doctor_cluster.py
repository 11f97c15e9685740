"""What a SLURM cluster's settings mean for Retain, one sentence each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retain.launchers.checks.finding import NOTE, OK, Finding
from retain.launchers.slurm.client import Limits, ask, read_limits
from retain.launchers.slurm.partitions import Partition, count_gpus, read_config, read_partitions
from retain.sweeps.base.errors import MissingResourceError

CREDENTIAL_S = 120
"""SLURM's cred_expire where AuthInfo does not say another."""


@dataclass(frozen=True)
class Qos:
    """A quality of service, as far as preemption by it goes."""

    name: str
    preempts: str
    preempt_mode: str
    grace_s: int


@dataclass(frozen=True)
class Cluster:
    """What the cluster told."""

    config: Mapping[str, str]
    """`scontrol show config`."""
    partitions: Sequence[Partition]
    limits: Limits
    qos: Sequence[Qos]
    """Only where preemption goes by QOS."""

    @property
    def user_signal(self) -> bool:
        """Whether a preempted job gets the signal that it asked for; newer versions moved the option."""
        options = f"{self.config.get('SlurmctldParameters', '')},{self.config.get('PreemptParameters', '')}"
        return any(re.fullmatch(r"(preempt_)?send_user_signal", option) for option in options.lower().split(","))

    def setting(self, name: str) -> str:
        return self.config.get(name, "")

    def seconds(self, name: str, default: int) -> int:
        """A setting such as `30 sec`."""
        found = re.match(r"\d+", self.setting(name))
        return int(found[0]) if found else default

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
            "job_requeue": self.setting("JobRequeue") == "1",
            "kill_wait_s": self.seconds("KillWait", 30),
            "accounting": "slurmdbd" in self.setting("AccountingStorageType"),
        }


def read_cluster() -> Cluster:
    """Ask the cluster. Raises MissingResourceError where it does not answer."""
    config = read_config()
    return Cluster(config, count_gpus(read_partitions()), read_limits(), _read_qos(config))


def _read_qos(config: Mapping[str, str]) -> list[Qos]:
    if config.get("PreemptType") != "preempt/qos":
        return []
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,Preempt,PreemptMode,GraceTime"]
    try:
        lines = ask(command, 10).splitlines()
    except MissingResourceError:
        return []
    return [Qos(name, preempts, mode, _clock(grace)) for name, preempts, mode, grace in map(_four, lines)]


def _four(line: str) -> tuple[str, str, str, str]:
    name, preempts, mode, grace = (*line.split("|"), "", "", "", "")[:4]
    return name, preempts, mode, grace


def _clock(text: str) -> int:
    """Seconds of [days-]hours:minutes:seconds; 0 for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def cluster_findings(cluster: Cluster) -> list[Finding]:
    """What each setting means, and the cure where one is in the way."""
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
    tasks = cluster.limits.array_tasks
    yield Finding("MaxArraySize", OK, f"{tasks + 1}: more than {tasks} siblings are submitted as several arrays")
    jobs = cluster.limits.jobs
    if jobs is not None:
        yield Finding(
            "MaxSubmitJobs", OK, f"{jobs} jobs of yours at a time: what is beyond it is submitted by the jobs that end"
        )
    elif "slurmdbd" in cluster.setting("AccountingStorageType"):
        yield Finding("MaxSubmitJobs", OK, "no limit is told")
    else:
        what = "this site keeps no accounting, so no limit is told; Retain asks squeue and its own store only"
        yield Finding("accounting", OK, what)


def _preemption(cluster: Cluster) -> Iterator[Finding]:
    kind = cluster.setting("PreemptType") or "preempt/none"
    if kind == "preempt/none":
        yield Finding("preemption", OK, "no job has to make room for another here")
        return
    by_qos = kind == "preempt/qos"
    rows: list[tuple[str, str, int]] = (
        [(f"QOS {qos.name}", qos.preempt_mode, qos.grace_s) for qos in cluster.qos]
        if by_qos
        else [(part.name, part.preempt_mode, part.grace_s) for part in cluster.partitions]
    )
    whole = cluster.setting("PreemptMode")
    modes = [(where, whole if mode in ("", "cluster") else mode, grace) for where, mode, grace in rows]
    told = [(where, mode.upper(), grace) for where, mode, grace in modes if mode.upper() != "OFF"]
    kill = cluster.seconds("KillWait", 30)
    graces = ", ".join(f"{grace} s in {where}" for where, _, grace in told) or "unknown"
    if cluster.user_signal:
        what = (
            f"{kind} with preempt_send_user_signal: a job that has to make room is warned, saves its state and goes "
            f"back to the queue within GraceTime ({graces})"
        )
        yield Finding("preemption", OK, what)
    else:
        what = (
            "this site sends no user signal at preemption: a job has GraceTime seconds after TERM to save "
            f"({graces}), else it loses at most execution.save_minutes (10 where the study does not say); where "
            "GraceTime is short, lower save_minutes, or ask the site for preempt_send_user_signal"
        )
        yield Finding("preemption", NOTE, what)
    for where, mode, grace in told:
        if "CANCEL" in mode:
            what = (
                f"a job that has to make room is cancelled, not requeued: it requeues itself if it has saved within "
                f"GraceTime ({grace} s), else retain submit takes it up again"
            )
            yield Finding(f"preemption in {where}", NOTE, what)
        elif "SUSPEND" in mode:
            what = "a job that has to make room is suspended and goes on later where it stood"
            yield Finding(f"preemption in {where}", OK, what)
        elif grace == 0:
            what = (
                f"GraceTime 0: a job that has to make room has KillWait ({kill} s) between TERM and KILL to save; "
                "lower execution.save_minutes if a state takes longer"
            )
            yield Finding(f"preemption in {where}", NOTE, what)


def _endings(cluster: Cluster) -> Iterator[Finding]:
    requeue = cluster.setting("JobRequeue") == "1"
    what = "1" if requeue else "0: jobs are not requeued unless they ask"
    yield Finding("JobRequeue", OK, f"{what}; Retain's jobs ask (--requeue), so they return after a node's death")
    kill = cluster.seconds("KillWait", 30)
    what = (
        f"{kill} s between TERM and KILL at a time limit; a job is warned execution.slurm.warning_seconds (120) "
        "before it"
    )
    yield Finding("KillWait", OK, what)
    found = re.search(r"cred_expire=(\d+)", cluster.setting("AuthInfo"))
    wait = int(found[1]) if found else CREDENTIAL_S
    yield Finding("requeue", OK, f"a requeued job starts again after {wait + 1} s at the earliest (cred_expire)")
