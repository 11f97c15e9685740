"""The runs of a study of replay schedules (Kotha & Liang, arXiv 2603.04964), and how much rare data replay is worth."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retain.results.analysis.sisters.designs import PHASES
from retain.results.analysis.sisters.interpolation import Amount, amount_for
from retain.results.analysis.sisters.measured import TARGET, losses_at
from retain.results.store.loss_table import Row

CONTINUED, RESTARTED = SCHEDULES = ("continued", "restarted")
"""One learning-rate schedule over both phases, or one for each."""
NAME = re.compile(r"(continued|restarted) a=(\d*\.?\d+) r=(\d*\.?\d+)(?: rare=(\d*\.?\d+))?")


@dataclass(frozen=True, order=True)
class Cell:
    """What a run is."""

    schedule: str
    late: float
    """a: the share of the rare data that phase 2 holds."""
    replay: float
    """r: the share of general text in phase 2."""
    rare: float = 1.0
    """The amount of rare data, relative to that of the grid."""


Losses = Mapping[int, float]
"""A loss by seed, in nats per token."""


@dataclass(frozen=True)
class Schedule:
    """The target losses of one schedule."""

    name: str
    grid: Mapping[tuple[float, float], Losses]
    """By a and r; without results where a run has not ended."""
    larger: Mapping[float, Losses]
    """Without replay and with all rare data in phase 2, by the amount of rare data; that of the grid is 1."""

    @property
    def lates(self) -> list[float]:
        """Every a, ascending."""
        return sorted({late for late, _ in self.grid})

    @property
    def replays(self) -> list[float]:
        """Every r above 0, ascending."""
        return sorted({replay for _, replay in self.grid} - {0.0})

    def worth(self, replay: float) -> dict[int, Amount]:
        """How much rare data a run without replay would need to reach the loss with replay, as a factor, by seed.

        That is the data efficiency, with all rare data in phase 2. Only seeds that have all the runs count.
        """
        amounts = sorted(amount for amount, losses in self.larger.items() if losses)
        reached = self.grid.get((1.0, replay), {})
        if len(amounts) < 2:
            return {}
        seeds = sorted(set(reached).intersection(*(set(self.larger[amount]) for amount in amounts)))
        return {
            seed: amount_for(reached[seed], amounts, [self.larger[amount][seed] for amount in amounts])
            for seed in seeds
        }


def cell_of(row: Row) -> Cell | None:
    """What a trial is, by the name of its case; None if the name says nothing of it."""
    found = NAME.fullmatch(str(row["axes"].get(PHASES, "")))
    return Cell(found[1], float(found[2]), float(found[3]), float(found[4] or 1)) if found else None


def schedules(rows: Iterable[Row]) -> list[Schedule]:
    """The schedules of a study; none for a study of another design."""
    losses = losses_at(rows, TARGET, cell_of)
    return [_schedule(name, losses) for name in SCHEDULES if any(cell.schedule == name for cell in losses)]


def _schedule(name: str, losses: Mapping[Cell, Losses]) -> Schedule:
    cells = sorted(cell for cell in losses if cell.schedule == name)
    return Schedule(
        name,
        {(cell.late, cell.replay): losses[cell] for cell in cells if cell.rare == 1},
        {cell.rare: losses[cell] for cell in cells if (cell.late, cell.replay) == (1, 0)},
    )


def amounts_in_words(name: str, found: Sequence[Amount]) -> str:
    """Which of these amounts are beyond the range, as a sentence; empty if none is."""
    parts = [
        f"{sum(one.beyond == way for one in found)} of {len(found)} seeds need {way} than ×{edge:g}"
        for way in ("more", "less")
        for edge in sorted({one.value for one in found if one.beyond == way})
    ]
    return f"{name}: {', '.join(parts)}, beyond the range of the runs without replay." if parts else ""
