"""A process's place among the ranks of one attempt, and how the ranks find each other."""

import os
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ranks:
    """The rank of a process among `world` ranks on several nodes. Rank 0 writes the run."""

    rank: int = 0
    world: int = 1
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def rendezvous(self, address: str, port: int, local_rank: int, node: int = 0) -> dict[str, str]:
        """The environment variables by which torch connects this rank to the others. address: the host name of rank 0.

        Ranks of one node connect over its loopback interface, unless the user has chosen another one.
        """
        interface = _loopback_interface() if self.nodes == 1 else {}
        return interface | {
            "MASTER_ADDR": LOOPBACK if self.nodes == 1 else address,
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(self.world),
            "RANK": str(self.rank),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.world // self.nodes),
            "GROUP_RANK": str(node),
        }


def free_port(address: str = LOOPBACK) -> int:
    """A TCP port that no process of this machine listens on; "": on any address."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _loopback_interface() -> dict[str, str]:
    names = [name for _, name in socket.if_nameindex()]
    interface = next((name for name in names if name.startswith("lo")), names[0])
    return {name: interface for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ}
