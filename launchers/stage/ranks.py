"""A process's place among the ranks of one attempt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """The launcher sets the rendezvous of the `world` ranks in the environment. Rank 0 writes the run."""

    rank: int = 0
    world: int = 1
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0
