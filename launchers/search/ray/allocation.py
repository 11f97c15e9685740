"""A Ray cluster of one SLURM job: each of its tasks, one on every node, starts a node of it and ends it.

The first task starts the head and writes where it is, with the token that its orders need, into a file that only this user
can read. The others join it, and end once it is gone, however that came about: nobody answers at its address any more.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from retain.launchers.search.ray.cleanup import ray_folder, trainers
from retain.launchers.search.ray.node import NodeSettings, NodeStartError, RayNode
from retain.launchers.search.ray.tune import Cluster
from retain.launchers.slurm.client import ask
from retain.launchers.stage.attempt import STOP_GRACE_S
from retain.launchers.stage.signals import STOP_SIGNALS, StopRequest
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.files import write_json
from retain.sweeps.schema.execution import Execution

MEETING_S = 600.0
"""How long the other tasks wait for the head: all tasks of a job begin together, but Ray starts slowly on a busy node."""
POLL_S = 0.5
SILENT_S = 30.0
"""How long a head may be out of reach; one that is gone is noticed at once, as its machine refuses to connect."""
STARTS = 3
"""How often a task tries to start its node, and how often it starts it anew whose processes died while the head lives."""
MISLEADING = ("SLURM", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI", "MPI_", "OMPI_")
"""Libraries would take the job's tasks for the ranks of a training."""
KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURMD_NODENAME")


@dataclass(frozen=True)
class Meeting:
    """What the head tells the other tasks; address None: it has ended, or did not start."""

    address: str | None
    token: str


def run_in_allocation(folder: Path, stop: StopRequest, drive: Callable[[Cluster], None]) -> None:
    """What every task of the job calls: the first runs `drive` on the cluster, the others take part until that has ended.

    folder: one of the store, for this search alone. stop: installed. drive: the cluster's `execution` is for it to fill in;
    a signal that stops the job raises KeyboardInterrupt in it, once. Raises MissingResourceError where Ray does not start,
    KeyboardInterrupt once it was stopped and nothing runs any more.
    """
    rank, nodes = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NNODES"])
    life = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    meeting = folder / f"ray.{life}.json"
    if rank == 0:
        _lead(meeting, nodes, stop, drive)
    else:
        _follow(meeting, stop)


def _lead(meeting: Path, nodes: int, stop: StopRequest, drive: Callable[[Cluster], None]) -> None:
    address = "127.0.0.1" if nodes == 1 else head_address()
    token = secrets.token_hex(32)
    _forget(meeting.parent)
    try:
        with _access(address, token), ray_folder() as own, _interrupting(stop):
            try:
                with _node(own, address, None) as (_, where):
                    if nodes > 1:
                        _write(meeting, Meeting(where, token))
                    drive(Cluster(where, Execution(), nodes))
            finally:
                _let_save(own)
    finally:
        if nodes > 1:
            _write(meeting, Meeting(None, ""))


def _follow(meeting: Path, stop: StopRequest) -> None:
    told = _wait_for(meeting, stop)
    if told is None or told.address is None:
        return
    address, starts = _own_address(told.address), 0
    while address is not None and starts < STARTS and answers(told.address):
        with _access(address, told.token), ray_folder() as own:
            try:
                with _node(own, address, told.address) as (node, _):
                    starts += 1
                    _stay(node, told.address)
            except NodeStartError:
                if answers(told.address):
                    raise
            finally:
                _let_save(own)


def _stay(node: RayNode, head: str) -> None:
    """Return once the head or this node is gone."""
    heard = time.monotonic()
    while node.is_alive():
        reachable = answers(head)
        if reachable is False or time.monotonic() > heard + SILENT_S:
            return
        heard = time.monotonic() if reachable else heard
        time.sleep(POLL_S)


def answers(address: str) -> bool | None:
    """Whether somebody listens there; None where nothing at all comes back."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SILENT_S / 3).close()
    except ConnectionError:
        return False
    except OSError:
        return None
    return True


def head_address() -> str:
    """This machine's address on the way to the job's last node: its name may stand for localhost here."""
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
def _node(own: Path, address: str, head: str | None) -> Iterator[tuple[RayNode, str]]:
    """A node of Ray that is up, and the cluster's address; on a busy machine Ray loses patience with itself."""
    bare = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(MISLEADING)}
    settings = NodeSettings(str(own), address, *offered(os.environ), head)
    for starts in range(1, STARTS + 1):
        node = RayNode(settings, bare)
        try:
            where = node.wait()
            yield node, where
            return
        except NodeStartError as error:
            if starts == STARTS:
                raise
            print(f"retain: {error}; once more", file=sys.stderr, flush=True)
        finally:
            node.close()


def _let_save(own: Path) -> None:
    """Wait until what trains on this node has noticed that its Ray is gone, and has saved: SLURM ends it with this task."""
    deadline = time.monotonic() + STOP_GRACE_S
    while trainers(own) and time.monotonic() < deadline:
        time.sleep(0.1)


def _own_address(head: str) -> str | None:
    """The address of this node that the head sees; None where it is gone."""
    host, _, port = head.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=SILENT_S) as connection:
            return str(connection.getsockname()[0])
    except OSError:
        return None


@contextlib.contextmanager
def _access(address: str, token: str) -> Iterator[None]:
    """What Ray reads when it is imported, and what it shows at the other nodes."""
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    if address.startswith("127."):
        # Ray binds its ports to localhost only where it is told that this machine is in no cluster.
        given["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _interrupting(stop: StopRequest) -> Iterator[None]:
    """A signal that stops the job arrives as Ctrl-C, once: SLURM sends several."""

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        first = stop.signal is None
        if callable(handler := before[signal.Signals(number)]):
            handler(number, frame)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if first:
            os.kill(os.getpid(), signal.SIGINT)  # of which Ray Tune takes care while it runs

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    try:
        if stop.signal:
            raise KeyboardInterrupt
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for(meeting: Path, stop: StopRequest) -> Meeting | None:
    """What the head says; None where the job is stopped before. Raises MissingResourceError where it says nothing."""
    deadline = time.monotonic() + MEETING_S
    while not meeting.exists():
        if stop.signal:
            return None
        if time.monotonic() > deadline:
            raise MissingResourceError(f"{meeting}: Ray has not started on the first node in {MEETING_S:g} s")
        time.sleep(POLL_S)
    return Meeting(**json.loads(meeting.read_text()))


def _write(meeting: Path, told: Meeting) -> None:
    before = os.umask(0o077)
    try:
        write_json(meeting, asdict(told))
    finally:
        os.umask(before)


def _forget(folder: Path) -> None:
    """Remove what earlier jobs said here."""
    for place in folder.glob("ray.*.json"):
        place.unlink(missing_ok=True)
