"""A process's place among those that train one stage together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """The launcher sets the rendezvous of the `world` processes in the environment; rank 0 is the chief."""

    rank: int = 0
    world: int = 1
    nodes: int = 1

    @property
    def chief(self) -> bool:
        return self.rank == 0
