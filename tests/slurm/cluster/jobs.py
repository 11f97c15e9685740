"""Submit jobs to a cluster with plain sbatch, and look at them."""

import re
import subprocess
from pathlib import Path

from tests.slurm.cluster.cluster import Cluster, call, ready_nodes, start_node, wait_until
from tests.slurm.cluster.daemons import PATIENCE_S


def submit(cluster: Cluster, script: str, *options: str, output: Path | None = None) -> str:
    """Hand a shell script to sbatch; the job's id. output: the file of what it prints, over all its runs."""
    told = ("--parsable", "--open-mode=append", f"--output={output or '/dev/null'}", *options)
    return call(cluster, "sbatch", *told, f"--wrap={script}").strip()


def job(cluster: Cluster, job_id: str) -> dict[str, str]:
    """What scontrol knows of a job, by its names: JobState, Reason, Restarts, NodeList...; {} once it is purged."""
    try:
        text = call(cluster, "scontrol", "--oneliner", "show", "job", job_id)
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in error.stderr:
            return {}
        raise
    return dict(re.findall(r"(\S+?)=(\S*)", text.partition("\n")[0]))


def state(cluster: Cluster, job_id: str) -> str:
    """A job's state, as PENDING, RUNNING, COMPLETED; "" once it is purged."""
    return job(cluster, job_id).get("JobState", "")


def wait_for_state(cluster: Cluster, job_id: str, *wanted: str, seconds: float = PATIENCE_S) -> None:
    """Return once the job is in one of these states."""
    what = f"job {job_id} {' or '.join(wanted)}"
    wait_until(lambda: state(cluster, job_id) in wanted, what, seconds)


def queue(cluster: Cluster) -> dict[str, str]:
    """The state of every job and array task that has not ended, by the id that squeue shows."""
    lines = call(cluster, "squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


def clear(cluster: Cluster) -> None:
    """Cancel all jobs, and have all nodes take jobs again."""
    for job_id in {job_id.partition("_")[0] for job_id in queue(cluster)}:
        for options in (["--full", "--signal=KILL"], []):
            # It may have ended since.
            subprocess.run(["scancel", *options, job_id], env=cluster.environment, capture_output=True, check=False)
    wait_until(lambda: not queue(cluster), "queue empty")
    for node in set(cluster.nodes) - ready_nodes(cluster):
        start_node(cluster, node)
