"""Trains the stages of a search on Ray: on this machine, on a running cluster, or on the cluster of an allocation."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retain.launchers.local.devices import local_slots
from retain.launchers.search.engine import Search
from retain.launchers.search.ray.cleanup import ray_folder
from retain.launchers.search.ray.node import ON_LOCALHOST, local_options, require_token
from retain.launchers.stage.signals import StopRequest, block_stop_signals
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.surroundings import library_imports
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.section import GROUNDWORK

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
CONNECT_S = 10.0
"""How long a cluster may take to accept a connection."""
JOIN_S = 300.0
"""How long to wait for the nodes of an allocation; then the search begins on those that have joined."""
POLL_S = 0.1
Amounts = Mapping[str, float]
"""CPUs and GPUs (under the keys CPU and GPU) that a node has, or that a stage needs."""


def train_on_ray(search: Search, stop: StopRequest, address: str | None, nodes: int, dashboard: bool = False) -> None:
    """Train the stages of a search until it has finished.

    address: of the cluster; None to start one here, with a dashboard on demand. nodes: of an allocation. Raises
    AttemptStopped, once all processes have saved a checkpoint and ended, if a stop is requested; MissingResourceError if Ray
    does not answer or lacks room for a stage.
    """
    study = search.searched.file.study
    execution = study.execution
    # Standard output is for the document of --json, but Ray prints messages about lost workers there.
    with contextlib.redirect_stdout(sys.stderr), _ray(execution, study.stages, address, nodes, dashboard) as found:
        stop.install()  # Ray has installed handlers of its own
        gpus = any(node.get("GPU", 0.0) > 0 for node in found)
        needs = needs_of(execution, study.stages, gpus)
        if address is None:
            search.parallel = len(local_slots(execution, study.stages))
        else:
            room = room_for(found, list(needs.values()), "the allocation" if nodes else f"--address {address}")
            search.parallel = min(room, execution.parallel or room)
        from retain.launchers.search.ray.tune import train_stages

        train_stages(search, stop, needs | needs_of(execution, GROUNDWORK, gpus))


def check_stages(execution: Execution, chain: Sequence[str], address: str | None) -> bool:
    """Whether this machine has GPUs for stages; False for a running cluster, whose GPUs are known once it is joined.

    Raises StudyError for a stage that spans several nodes, MissingResourceError if this machine lacks the requested devices.
    """
    needs_of(execution, chain, gpus=False)
    return address is None and any(slot.gpus for slot in local_slots(execution, chain))


def needs_of(execution: Execution, chain: Sequence[str], gpus: bool) -> dict[str, Amounts]:
    """What each stage of a chain needs on its node. gpus: whether the cluster has any. Raises StudyError for several nodes."""
    needs: dict[str, Amounts] = {}
    for kind in chain:
        stage = execution.of_stage(kind)
        if stage.slurm.nodes > 1:
            raise StudyError("execution.slurm.nodes: a search on Ray trains a stage on one node; leave it 1")
        if stage.accelerator == "gpu" or (stage.accelerator == "auto" and gpus):
            needs[kind] = {"CPU": float(stage.devices), "GPU": float(stage.devices)}
        else:
            needs[kind] = {"CPU": float(stage.devices * stage.threads)}
    return needs


def room_for(nodes: Sequence[Amounts], needs: Sequence[Amounts], name: str) -> int:
    """The number of stages that fit on a cluster at a time. Raises MissingResourceError if some stage does not fit."""
    room = [
        sum(int(min(node.get(what, 0.0) / count for what, count in need.items())) for node in nodes) for need in needs
    ]
    if 0 in room:
        need = needs[room.index(0)]
        asked = " and ".join(f"{count:g} {what}s" for what, count in need.items())
        has = " and ".join(f"{max((node.get(what, 0.0) for node in nodes), default=0.0):g} {what}s" for what in need)
        raise MissingResourceError(
            f"{name}: a stage needs {asked}, and the largest node has {has}; ask for fewer in execution, or for larger nodes"
        )
    return max(room)


def answers(address: str) -> bool | None:
    """Whether a server accepts connections at `host:port`; None if nothing comes back."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except ConnectionError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _ray(
    execution: Execution, chain: Sequence[str], address: str | None, nodes: int, dashboard: bool
) -> Iterator[list[Amounts]]:
    """Start Ray or join a cluster; yields what each node has. Everything that was started is stopped afterwards."""
    os.environ.update(_ENVIRONMENT)
    with contextlib.ExitStack() as stack:
        if address is None:
            # Only this process knows the token that Ray's ports require.
            token = secrets.token_hex(32)
            require_token(token, on_localhost=True)
            slots = local_slots(execution, chain)
            gpus = len({gpu for slot in slots for gpu in slot.gpus})
            cpus = len(slots) * int(max(need["CPU"] for need in needs_of(execution, chain, gpus > 0).values()))
            options = local_options(stack.enter_context(ray_folder()), cpus, gpus, dashboard)
        else:
            _check_address(address)
            options = {"address": address}
            if os.path.exists(os.path.expanduser("~/.ray/auth_token")) or "RAY_AUTH_TOKEN" in os.environ:
                # Ray does not send its token by default; a cluster without tokens ignores it.
                os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray  # it reads the environment

        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it raises the errors that it logs
        try:
            # Ray would add the folder of the script and the current folder to the path of its workers. Its processes must
            # outlive a closed terminal until the stages have saved their checkpoints.
            with library_imports(), contextlib.chdir(sys.prefix), block_stop_signals([signal.SIGHUP]):
                context = ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        except Exception as error:  # Ray raises this very class if its dashboard does not start
            where = "Ray cannot be started here" if address is None else f"--address {address}: no Ray answers there"
            raise MissingResourceError(f"{where} ({' '.join(str(error).split())[:200]})") from None
        stack.callback(ray.shutdown)
        if address is None and dashboard:
            print(f"Ray dashboard, on this machine only: http://{context.dashboard_url}, with the token {token}")
        yield _joined(nodes)


def _joined(expected: int) -> list[Amounts]:
    """What each living node has, once as many as expected have joined or the time is up."""
    import ray

    deadline = time.monotonic() + JOIN_S
    while True:
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes: list[Amounts] = [node["Resources"] for node in known if node["Alive"]]
        if len(nodes) >= expected:
            return nodes
        if time.monotonic() > deadline:
            print(f"retain: {len(nodes)} of {expected} nodes have joined; the search begins on these", file=sys.stderr)
            return nodes
        time.sleep(POLL_S)


def _check_address(address: str) -> None:
    """Raise MissingResourceError if no server listens there: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto": the cluster of this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise MissingResourceError(
            f"--address {address}: no Ray answers there ({error}); start one with ray start --head, or omit --address"
        ) from None
    if host in ("localhost", "127.0.0.1") and not answers(f"127.0.0.2:{port}"):
        # Ray would look for this machine at its external address, but the cluster listens on 127.0.0.1 only.
        os.environ.update(ON_LOCALHOST)
