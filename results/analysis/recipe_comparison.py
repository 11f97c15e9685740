"""How much better a recommended recipe is than others, on the fresh seeds of the study that confirms a search.

That study is `confirm.yaml`. Its axis `recipe` names the recommended recipe (several, if the search was for a frontier), the
best of the searched study's grid if there is one, and the searched study's own recipe. The fine-tunings of each recipe trace
its frontier. Effects are paired by seed, with 95% intervals (`retain.results.analysis.effects`).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from retain.results.analysis.axes import RECIPE, axis_names, grouped, is_seed, varied_axes
from retain.results.analysis.effects import Effect, frontier_gap, hypervolume_gain, paired_difference
from retain.results.analysis.loss_planes import PLANES, LossPlane, matched_rows, means_by_seed, points_by_seed
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES

RECOMMENDED = "recommended"
ON_FRONTIER = "frontier-"
"""The prefix of the recommended recipes of a search for a frontier; they are compared as one."""
GRID_BEST = "grid-best"
DEFAULT = "default"

Found = TypeVar("Found", bound=Collection[int])


@dataclass(frozen=True)
class FrontierContrast:
    """The recommended frontier against another one in a plane of two losses."""

    plane: LossPlane
    other: str
    gain: Effect
    """The hypervolume of the recommended frontier minus that of the other, in squared nats; above 0 it is better."""
    gap: Effect
    """The height of the recommended hull minus that of the other at equal x, in nats; below 0 it is better."""
    checkpoints: tuple[int, int]
    """The most checkpoints of any seed, recommended and other; more checkpoints alone make a frontier better."""


@dataclass(frozen=True)
class LossContrast:
    """The recommended recipe's loss minus another recipe's, over the same fine-tunings, in nats; below 0 it is better."""

    loss: str
    other: str
    difference: Effect


def frontier_contrasts(rows: Sequence[Row]) -> list[FrontierContrast]:
    """The recommended recipe against every other recipe, in both planes; empty until both are trained.

    Hypervolumes reach up to the worst losses on the Pareto sets of both (`effects.worst_of`). A checkpoint counts once its
    counterparts in all recipes are finished.
    """
    found = []
    for plane in PLANES:
        points = {name: points_by_seed(own, plane) for name, own in _by_recipe(rows, plane.x, plane.y).items()}
        for name, other, recommended in _pairs(points):
            most = (max(map(len, recommended.values())), max(map(len, other.values())))
            gain, gap = hypervolume_gain(other, recommended), frontier_gap(other, recommended)
            found.append(FrontierContrast(plane, name, gain, gap, most))
    return found


def loss_contrasts(rows: Sequence[Row]) -> list[LossContrast]:
    """Each of the four losses of the recommended recipe against every other recipe's, as a mean over fine-tunings per seed.

    Empty if several recipes are recommended, as on a frontier: their mean has no meaning.
    """
    if not any(row["axes"].get(RECIPE) == RECOMMENDED for row in rows):
        return []
    found = []
    for loss in LOSSES:
        means = {name: means_by_seed(own, loss) for name, own in _by_recipe(rows, loss).items()}
        for name, other, recommended in _pairs(means):
            found.append(LossContrast(loss, name, paired_difference(other, recommended)))
    return found


def _pairs(by_recipe: Mapping[str, Found]) -> Iterator[tuple[str, Found, Found]]:
    """For each other recipe: its name, its values by seed, and those of the recommended recipe."""
    recommended = by_recipe.get(RECOMMENDED)
    for name, other in by_recipe.items():
        if recommended and other and name != RECOMMENDED:
            yield name, other, recommended


def _by_recipe(rows: Sequence[Row], *losses: str) -> dict[str, list[Row]]:
    """The rows of each recipe whose counterparts in all other recipes have these losses too."""
    named = [row for row in rows if RECIPE in row["axes"]]
    # Recipes share the axes that vary within a recipe; the others are what they differ in.
    within = grouped(named, lambda row: row["axes"][RECIPE]).values()
    shared = {axis for own in within for axis in varied_axes(own)} | {
        name for name in axis_names(rows) if is_seed(name)
    }
    return grouped(matched_rows(named, shared, *losses), _name)


def _name(row: Row) -> str:
    name = str(row["axes"][RECIPE])
    return RECOMMENDED if name.startswith(ON_FRONTIER) else name
