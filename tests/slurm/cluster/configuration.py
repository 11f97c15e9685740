"""What a cluster is made of: its site's settings, its folder and ports, and the files that SLURM reads there."""

import json
import os
import pwd
import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template
from typing import TypeVar

from tests.slurm.cluster.packages import search_path

Setting = TypeVar("Setting", int, bool)
TEMPLATES = Path(__file__).with_name("templates")
FOLDERS = ("bin", "db", "dev", "log", "munge", "run", "spool", "state")
FOREIGN = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_")
LONGEST_SOCKET = 107
PORTS_OF_A_CLUSTER = 100
FIRST_PORTS = range(10000, 16000, PORTS_OF_A_CLUSTER)
"""Below the ports that kernels give to outgoing connections, which would take the place of a stopped daemon's."""


def _setting(default: Setting, meaning: str) -> Setting:
    """A field of Site, whose meaning the command shows."""
    made: Setting = field(default=default, metadata={"meaning": meaning})
    return made


@dataclass(frozen=True)
class Site:
    """What one site's users meet, as far as sites differ."""

    nodes: int = _setting(4, "named n1, n2...")
    gpus: int = _setting(8, "per node, not real ones")
    cpus: int = _setting(64, "per node, whatever this machine has")
    grace: int = _setting(5, "GraceTime of the partition `low`, in seconds")
    user_signal: bool = _setting(True, "at preemption a job gets the signal that it asked for with --signal")
    accounting: bool = _setting(True, "slurmdbd, so that there are sacct and limits")
    max_array_size: int = _setting(10001, "MaxArraySize, one more than the highest index")
    max_jobs: int = _setting(20000, "MaxJobCount, of all users")
    max_submit: int = _setting(0, "MaxSubmitJobsPerUser of the QOS, array tasks counted, 0 for no limit")
    max_minutes: int = _setting(0, "MaxTime of both partitions, 0 for no limit")
    forget_after: int = _setting(120, "MinJobAge, the seconds before a finished job is purged")
    patient_scontrol: bool = _setting(False, "a scontrol that TERM does not end comes first in PATH")
    first_job: int = _setting(0, "FirstJobId, 0 for a random one, which no earlier cluster is likely to have given out")


@dataclass(frozen=True)
class Cluster:
    """A cluster: its state, logs and sockets are in folder; it listens on port (slurmctld) and those that follow."""

    folder: Path
    port: int
    site: Site

    @property
    def name(self) -> str:
        return f"test{self.port}"

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.site.nodes + 1))

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    @property
    def variables(self) -> dict[str, str]:
        """What its users need in their environment."""
        bin_first = f"{self.folder / 'bin'}{os.pathsep}" if self.site.patient_scontrol else ""
        return {"SLURM_CONF": str(self.conf), "PATH": bin_first + search_path()}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of this process's user on this cluster: no other SLURM, not even a job's that runs this."""
        return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | self.variables


@contextmanager
def reserved_ports() -> Iterator[int]:
    """The first of a cluster's ports, which no other start of a cluster takes before the daemons of this one have."""
    for first in random.sample(FIRST_PORTS, len(FIRST_PORTS)):
        with socket.socket(socket.AF_UNIX) as reservation:
            try:
                reservation.bind(f"\0retain-slurm-{first}")
            except OSError:
                continue
            if all(_is_free(port) for port in range(first, first + PORTS_OF_A_CLUSTER)):
                yield first
                return
    raise OSError(f"no {PORTS_OF_A_CLUSTER} free ports in a row from {FIRST_PORTS.start} to {FIRST_PORTS.stop}")


def configure(folder: Path, port: int, site: Site) -> Cluster:
    """Write all files of a cluster into this folder, which must be absent or empty."""
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: bring down the cluster in it, or take another folder")
    if (surplus := len(f"{folder}/spool/n00/n00_67108863.4294967291") - LONGEST_SOCKET) > 0:
        raise ValueError(f"{folder}: {surplus} characters too long for the sockets of SLURM's step daemons")
    if site.nodes > PORTS_OF_A_CLUSTER - 2:
        raise ValueError(f"{site.nodes} nodes: a cluster has at most {PORTS_OF_A_CLUSTER - 2}")
    cluster = Cluster(folder, port, site)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        (folder / name).mkdir(mode=0o755)
    (folder / "cluster.json").write_text(json.dumps({"port": cluster.port, "site": asdict(site)}))
    values = _values(cluster)
    if site.accounting:
        values["accounting"] = _filled("accounting.conf", values)
        (folder / "slurmdbd.conf").write_text(_filled("slurmdbd.conf", values))
        (folder / "slurmdbd.conf").chmod(0o600)
    cluster.conf.write_text(_filled("slurm.conf", values))
    for node in cluster.nodes:
        # slurmd hands its step daemons little more than its SLURM_CONF: by this name a node's are told apart.
        (folder / f"{node}.conf").symlink_to(cluster.conf)
    (folder / "gres.conf").write_text(_filled("gres.conf", values) if site.gpus else "")
    for number in range(site.gpus):
        (folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
    if site.patient_scontrol:
        (folder / "bin" / "scontrol").write_text(_filled("scontrol", values))
        (folder / "bin" / "scontrol").chmod(0o755)
    return cluster


def opened(folder: Path) -> Cluster | None:
    """The cluster that was configured in this folder; None if there is none."""
    try:
        fields = json.loads((folder / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Cluster(folder.resolve(), fields["port"], Site(**fields["site"]))


def _values(cluster: Cluster) -> dict[str, object]:
    site, first_node_port = cluster.site, cluster.port + 2
    return {
        **asdict(site),
        "name": cluster.name,
        "folder": cluster.folder,
        "host": socket.gethostname().partition(".")[0],
        "user": cluster.user,
        "port": cluster.port,
        "accounting_port": cluster.port + 1,
        "accounting": "",
        "enforce": "AccountingStorageEnforce=limits,qos" if site.max_submit else "",
        "nodes": f"n[1-{site.nodes}]",
        "node_ports": f"[{first_node_port}-{first_node_port + site.nodes - 1}]",
        "gres": f"Gres=gpu:{site.gpus}" if site.gpus else "",
        "last_gpu": site.gpus - 1,
        "max_minutes": site.max_minutes or "INFINITE",
        "first_job": site.first_job or random.randrange(1, 60_000) * 1000,
        "user_signal": "SlurmctldParameters=preempt_send_user_signal" if site.user_signal else "",
        "scontrol": shutil.which("scontrol", path=search_path()),
    }


def _filled(template: str, values: dict[str, object]) -> str:
    return Template((TEMPLATES / template).read_text()).substitute(values)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
