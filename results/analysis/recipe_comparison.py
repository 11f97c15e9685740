"""How much better a recommended recipe is than others, on the fresh seeds of the study that confirms a search.

That study is `confirm.yaml`. Its axis `recipe` names the recommended recipe (several, if the search was for a frontier), the
best of the searched study's grid if there is one, and the searched study's own recipe. Each recommended recipe is compared with
each other one. The fine-tunings of a recipe trace its frontier. Effects are paired by seed, with 95% intervals
(`retain.results.analysis.effects`).
"""

import itertools
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
"""The prefix of the recommended recipes of a search for a frontier."""
WHOLE_FRONTIER = "whole frontier"
"""All of them together."""
GRID_BEST = "grid-best"
DEFAULT = "default"

Found = TypeVar("Found", bound=Collection[int])


@dataclass(frozen=True)
class FrontierContrast:
    """A recommended recipe's frontier against another recipe's in a plane of two losses."""

    plane: LossPlane
    recipe: str
    """The recommended recipe, or `WHOLE_FRONTIER`."""
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
    recipe: str
    other: str
    difference: Effect


def frontier_contrasts(rows: Sequence[Row]) -> list[FrontierContrast]:
    """Each recommended recipe against every other recipe, in both planes; empty until both are trained.

    Several recommended recipes are also taken together. Hypervolumes reach up to the worst losses on the Pareto sets of both
    (`effects.worst_of`). A checkpoint counts once its counterparts in all recipes are finished.
    """
    found = []
    for plane in PLANES:
        by_recipe = _by_recipe(rows, plane.x, plane.y)
        several = [row for name, own in by_recipe.items() if name.startswith(ON_FRONTIER) for row in own]
        if sum(map(_is_recommended, by_recipe)) > 1:
            by_recipe |= {WHOLE_FRONTIER: several}
        points = {name: points_by_seed(own, plane) for name, own in by_recipe.items()}
        for (recipe, recommended), (name, other) in _pairs(points):
            most = (max(map(len, recommended.values())), max(map(len, other.values())))
            gain, gap = hypervolume_gain(other, recommended), frontier_gap(other, recommended)
            found.append(FrontierContrast(plane, recipe, name, gain, gap, most))
    return found


def loss_contrasts(rows: Sequence[Row]) -> list[LossContrast]:
    """Each of the four losses of each recommended recipe against every other recipe's, as a mean over fine-tunings per seed."""
    found = []
    for loss in LOSSES:
        means = {name: means_by_seed(own, loss) for name, own in _by_recipe(rows, loss).items()}
        for (recipe, recommended), (name, other) in _pairs(means):
            found.append(LossContrast(loss, recipe, name, paired_difference(other, recommended)))
    return found


def _pairs(by_recipe: Mapping[str, Found]) -> Iterator[tuple[tuple[str, Found], tuple[str, Found]]]:
    """Each recommended recipe and each other one that have values: their names, and their values by seed."""
    known = {name: values for name, values in by_recipe.items() if values}
    recommended = [one for one in known.items() if _is_recommended(one[0])]
    return itertools.product(recommended, [one for one in known.items() if not _is_recommended(one[0])])


def _is_recommended(recipe: str) -> bool:
    return recipe in (RECOMMENDED, WHOLE_FRONTIER) or recipe.startswith(ON_FRONTIER)


def _by_recipe(rows: Sequence[Row], *losses: str) -> dict[str, list[Row]]:
    """The rows of each recipe whose counterparts in all other recipes have these losses too."""
    named = [row for row in rows if RECIPE in row["axes"]]
    # Recipes share the axes that vary within a recipe; the others are what they differ in.
    within = grouped(named, _recipe).values()
    shared = {axis for own in within for axis in varied_axes(own)} | {
        name for name in axis_names(rows) if is_seed(name)
    }
    return grouped(matched_rows(named, shared, *losses), _recipe)


def _recipe(row: Row) -> str:
    return str(row["axes"][RECIPE])
