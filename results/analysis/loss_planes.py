"""The four losses by the paper's symbols, the planes of two losses in which frontiers are drawn, and trials as points."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.axes import grouped, seed_of, setting
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES

L_IM, L_RET, L_FT, L_PRE = LOSSES
SYMBOLS = {L_IM: "L_im", L_RET: "L_ret", L_FT: "L_ft", L_PRE: "L_pre"}

Floats = npt.NDArray[np.float64]
Points = Floats
"""[n, 2]: one checkpoint a row, two losses in nats per token; lower is better on both."""


@dataclass(frozen=True)
class LossPlane:
    """Two losses that trade off against each other."""

    x: str
    y: str

    @property
    def name(self) -> str:
        """Both symbols, y first: `(L_ret, L_ft)`."""
        return f"({SYMBOLS[self.y]}, {SYMBOLS[self.x]})"


PLANES = (LossPlane(L_FT, L_RET), LossPlane(L_RET, L_PRE))
"""The two columns of Figure 2: retention against fine-tuning, and pretraining against retention."""


def has_losses(row: Row, *losses: str) -> bool:
    """Whether a trial has these losses as finite numbers: none is missing, and no run diverged."""
    return all(row[loss] is not None and math.isfinite(row[loss]) for loss in losses)


def matched_rows(rows: Collection[Row], axes: Collection[str], *losses: str) -> list[Row]:
    """The rows that have these losses and whose counterparts, the rows with the same values on `axes`, have them too.

    Groups that are compared then hold the same settings, so the group with more finished trials has no advantage.
    """
    incomplete = {setting(row, axes) for row in rows if not has_losses(row, *losses)}
    return [row for row in rows if setting(row, axes) not in incomplete]


def points_by_seed(rows: Iterable[Row], plane: LossPlane) -> dict[int, Points]:
    """The points of each seed, [n, 2], by ascending seed; trials that lack one of the two losses are left out."""
    finished = grouped((row for row in rows if has_losses(row, plane.x, plane.y)), seed_of)
    return {seed: np.array([(row[plane.x], row[plane.y]) for row in own]) for seed, own in sorted(finished.items())}


def means_by_seed(rows: Iterable[Row], loss: str) -> dict[int, float]:
    """The mean of a loss over the trials of each seed; every row must have it."""
    return {seed: float(np.mean([row[loss] for row in own])) for seed, own in grouped(rows, seed_of).items()}
