"""Starts Ray: a whole cluster on localhost, or one node of a cluster in a SLURM job that shares its machines with others.

This file is the only one that uses private parts of Ray, which have no public equivalent: `ray._private.node` and
`ray._private.parameter`, and the options of `ray.init` that begin with an underscore. `ray start` cannot start several nodes
on one machine, and `ray.init` alone listens on all interfaces. If a version of Ray lacks these parts, Ray does not start, and
the message names the missing part and the installed version.

A node chooses all its ports when it binds them. On 127.0.0.1 several nodes may run on one machine. On any other address its
servers listen on all interfaces, and accept only requests with the token.
"""

import dataclasses
import importlib.metadata
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.launchers.search.ray.cleanup import MARK
from retain.launchers.stage.signals import AttemptStopped, StopRequest, block_stop_signals
from retain.sweeps.base.errors import MissingResourceError

START_S = 300.0
"""How long a node may take to start: its files may be on a slow file system."""
POLL_S = 1.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's minimum: nothing goes through it."""
ON_LOCALHOST = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray binds its ports to localhost only if it is told that this machine is in no cluster; an address is not enough."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray starts a process for each CPU, and kills ours if another job uses up the machine's memory.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


class NodeStartError(MissingResourceError):
    """Ray cannot be started."""


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """What a node offers, and where. head: the address of the cluster to join; None for its first node."""

    folder: str
    address: str
    cpus: int
    gpus: int
    head: str | None


def require_token(token: str, on_localhost: bool) -> None:
    """Set what Ray reads when it is imported: the token that its servers require, and whether they listen on localhost only."""
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} | (ON_LOCALHOST if on_localhost else {}))


def local_options(folder: Path, cpus: int, gpus: int, dashboard: bool) -> dict[str, Any]:
    """The options of `ray.init` for a cluster on localhost with its files in a folder, and with a dashboard or without."""
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "include_dashboard": dashboard,
        "dashboard_host": "127.0.0.1",
        "object_store_memory": OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
    }


class RayNode:
    """A node that was started. Its processes end with `close`, or with this process."""

    def __init__(self, settings: NodeSettings, environment: Mapping[str, str]) -> None:
        """Start the node with this environment for all its processes."""
        command = [sys.executable, "-m", "retain.launchers.search.ray.node", json.dumps(dataclasses.asdict(settings))]
        self.log = Path(settings.folder) / "node.log"
        with block_stop_signals(), self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**environment, **_ENVIRONMENT, MARK: settings.folder},
            )

    def wait(self, stop: StopRequest) -> str:
        """The address of the cluster, once the node is up.

        Raises NodeStartError if it does not start, AttemptStopped if a stop is requested.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if stop.signal:
                raise AttemptStopped(stop.signal)
            if select.select([self.process.stdout], [], [], POLL_S)[0]:
                line = self.process.stdout.readline().decode()
                if line.startswith("address "):
                    return line.split()[1]
                break
        self.close()
        lines = self.log.read_text(errors="replace").split("\n")
        why = next((line.strip() for line in reversed(lines) if line.strip()), f"no answer within {START_S:g} s")
        raise NodeStartError(f"Ray cannot be started here ({why[:300]})")

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End all processes of the node."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _run(settings: NodeSettings) -> None:
    try:
        from ray._private.node import Node
        from ray._private.parameter import RayParams
    except ImportError as error:
        version = importlib.metadata.version("ray")
        sys.exit(f"ray {version} is not supported ({error}); install the version that Retain's lock file pins")

    node = Node(
        RayParams(
            node_ip_address=settings.address,
            gcs_address=settings.head,
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            temp_dir=settings.folder,
            include_dashboard=False,
            include_log_monitor=False,  # type: ignore[arg-type]
            no_monitor=True,
        ),
        head=settings.head is None,
        shutdown_at_exit=False,
        spawn_reaper=True,
    )
    print(f"address {node.address}", flush=True)
    while not node.dead_processes():  # type: ignore[no-untyped-call]
        if select.select([sys.stdin], [], [], POLL_S)[0]:  # the process that started it has closed it, perhaps by dying
            break
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)


if __name__ == "__main__":
    _run(NodeSettings(**json.loads(sys.argv[1])))
