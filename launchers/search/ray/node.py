"""One node of a Ray cluster, as long as whoever started it lives: `ray start` for a job that shares its machines.

Ray picks all ports itself, when it binds them. On 127.0.0.1 it takes several nodes of one machine, of which `ray start` knows
nothing; on another address its servers listen on all interfaces, and take orders from those who have the token.
"""

import dataclasses
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from retain.launchers.search.ray.cleanup import MARK, deaf
from retain.sweeps.base.errors import MissingResourceError

START_S = 300.0
"""How long a node may take to start: its files may come from a slow file system."""
LOOK_S = 1.0
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's least: nothing goes through it."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would start a process for each CPU, and end ours where another job of the machine takes its memory.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


class NodeStartError(MissingResourceError):
    """Ray does not start."""


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """What a node offers, and where; head: the address of the cluster to join, None for its first node."""

    folder: str
    address: str
    cpus: int
    gpus: int
    head: str | None


class RayNode:
    """A started node. Its processes end with `close`, or with this process."""

    def __init__(self, settings: NodeSettings, environment: Mapping[str, str]) -> None:
        """Start it, with this environment for all its processes."""
        command = [sys.executable, "-m", "retain.launchers.search.ray.node", json.dumps(dataclasses.asdict(settings))]
        self.log = Path(settings.folder) / "node.log"
        with deaf(), self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**environment, **_ENVIRONMENT, MARK: settings.folder},
            )

    def wait(self) -> str:
        """The cluster's address, once the node is up. Raises NodeStartError where it does not start."""
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], START_S)[0]:
            line = self.process.stdout.readline().decode()
            if line.startswith("address "):
                return line.split()[1]
        self.close()
        told = self.log.read_text(errors="replace").split("\n")
        why = next((line.strip() for line in reversed(told) if line.strip()), f"no answer in {START_S:g} s")
        raise NodeStartError(f"Ray does not start here ({why[:300]})")

    def lives(self) -> bool:
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
    from ray._private.node import Node
    from ray._private.parameter import RayParams

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
        if select.select([sys.stdin], [], [], LOOK_S)[0]:  # whoever started it has closed it, perhaps by dying
            break
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)


if __name__ == "__main__":
    _run(NodeSettings(**json.loads(sys.argv[1])))
