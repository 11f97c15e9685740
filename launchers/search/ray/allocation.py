"""A Ray cluster of one SLURM job: each of its tasks, one on every node, starts a node of it and ends it.

The first task starts the head. It writes the head's address, with the token that the head requires, into a file that only this
user can read. The other tasks join, and end once nobody answers at that address any more.
"""

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.launchers.search.ray.cleanup import ray_folder, trainers
from retain.launchers.search.ray.cluster import answers
from retain.launchers.search.ray.node import NodeSettings, NodeStartError, RayNode, require_token
from retain.launchers.slurm.client import ask
from retain.launchers.stage.log import STOP_GRACE_S
from retain.launchers.stage.signals import StopRequest
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import MissingResourceError

MEETING_S = 600.0
"""How long the other tasks wait for the head: all tasks of a job begin together, but Ray starts slowly on a busy node."""
POLL_S = 0.5
SILENT_S = 30.0
"""How long a head may be unreachable. One that has ended is noticed at once, as its machine refuses connections."""
STARTS = 3
"""How often a task tries to start its node, and how often it starts a node whose processes died while the head is alive."""
MISLEADING = ("SLURM", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI", "MPI_", "OMPI_")
"""Prefixes of variables by which libraries would take the job's tasks for the ranks of a training."""
KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURMD_NODENAME")


@dataclass(frozen=True)
class Meeting:
    """What the first task writes for the others. address: of the head; None if it has ended, or did not start."""

    address: str | None
    token: str


def run_in_allocation(folder: Path, stop: StopRequest, drive: Callable[[str, int], None]) -> None:
    """Run `drive` in the first task of the job, with the address of the cluster and its number of nodes.

    Every task of the job calls this; the others are nodes of the cluster until `drive` has ended. folder: in the store, for
    this search alone. Raises MissingResourceError if Ray does not start.
    """
    rank, nodes = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NNODES"])
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    meeting = folder / f"ray.{os.environ['SLURM_JOB_ID']}.{restarts}.json"
    if rank == 0:
        _lead(meeting, nodes, stop, drive)
    else:
        _follow(meeting, stop)


def _lead(meeting: Path, nodes: int, stop: StopRequest, drive: Callable[[str, int], None]) -> None:
    for earlier in meeting.parent.glob("ray.*.json"):
        earlier.unlink(missing_ok=True)
    host, token = "127.0.0.1" if nodes == 1 else head_address(), secrets.token_hex(32)
    require_token(token, on_localhost=host.startswith("127."))
    try:
        with _node(host, None, stop) as (_, address):
            if nodes > 1:
                _write(meeting, Meeting(address, token))
            drive(address, nodes)
    finally:
        if nodes > 1:
            _write(meeting, Meeting(None, ""))


def _follow(meeting: Path, stop: StopRequest) -> None:
    told = _wait_for(meeting, stop)
    if told is None or told.address is None or (host := _own_address(told.address)) is None:
        return
    require_token(told.token, on_localhost=host.startswith("127."))
    for _ in range(STARTS):
        if not answers(told.address):
            return
        try:
            with _node(host, told.address, stop) as (node, _):
                _stay(node, told.address)
        except NodeStartError:
            if answers(told.address):
                raise


def _stay(node: RayNode, head: str) -> None:
    """Return once the head or this node is gone."""
    heard = time.monotonic()
    while node.is_alive():
        reachable = answers(head)
        if reachable is False or time.monotonic() > heard + SILENT_S:
            return
        heard = time.monotonic() if reachable else heard
        time.sleep(POLL_S)


def head_address() -> str:
    """This machine's address on the way to the job's last node; its host name may resolve to localhost here."""
    told = ask(["scontrol", "--oneliner", "show", "node", os.environ["SLURM_JOB_NODELIST"]])
    last = re.findall(r"\bNodeAddr=(\S+)", told)[-1]
    family, kind, protocol, _, place = socket.getaddrinfo(last, 9, socket.AF_INET, socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(place)  # sends nothing
        return str(way.getsockname()[0])


def offered(environment: Mapping[str, str]) -> tuple[int, int]:
    """CPUs and GPUs that SLURM gave to this task."""
    cpus = environment.get("SLURM_CPUS_PER_TASK") or environment.get("SLURM_CPUS_ON_NODE", "1")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [name for name in visible.split(",") if name and name != "NoDevFiles"]
    return int(cpus), len(gpus)


@contextlib.contextmanager
def _node(host: str, head: str | None, stop: StopRequest) -> Iterator[tuple[RayNode, str]]:
    """A node of Ray that is up, and the cluster's address. On a busy machine, Ray's own timeouts may end its start."""
    bare = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(MISLEADING)}
    with ray_folder() as folder:
        settings = NodeSettings(str(folder), host, *offered(os.environ), head)
        for starts in range(1, STARTS + 1):
            node = RayNode(settings, bare)
            try:
                address = node.wait(stop)
                yield node, address
                return
            except NodeStartError as error:
                if starts == STARTS:
                    raise
                print(f"retain: {error}; trying again", file=sys.stderr, flush=True)
            finally:
                node.close()
                _let_save(folder)


def _let_save(folder: Path) -> None:
    """Wait until the training processes of this node have saved, now that Ray is gone: SLURM ends them with this task."""
    deadline = time.monotonic() + STOP_GRACE_S
    while trainers(folder) and time.monotonic() < deadline:
        time.sleep(0.1)


def _own_address(head: str) -> str | None:
    """The address of this node that the head sees; None if the head is gone."""
    host, _, port = head.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=SILENT_S) as connection:
            return str(connection.getsockname()[0])
    except OSError:
        return None


def _wait_for(meeting: Path, stop: StopRequest) -> Meeting | None:
    """What the first task has written; None if a stop is requested before. Raises MissingResourceError after MEETING_S."""
    deadline = time.monotonic() + MEETING_S
    while not meeting.exists():
        if stop.signal:
            return None
        if time.monotonic() > deadline:
            raise MissingResourceError(f"{meeting}: Ray has not started on the first node in {MEETING_S:g} s")
        time.sleep(POLL_S)
    return read_document(meeting, Meeting, "search again")


def _write(meeting: Path, told: Meeting) -> None:
    before = os.umask(0o077)
    try:
        write_document(meeting, asdict(told))
    finally:
        os.umask(before)
