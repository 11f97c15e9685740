"""How much better a recommended recipe is than others, on the fresh seeds of the study that confirms a search.

The study is that of `confirm.yaml`: its axis `recipe` names the recommended recipe (of a frontier, several), perhaps the best
of the searched study's grid, and that study's own recipe; its fine-tunings trace a frontier of each. Effects are paired by
seed, with 95% intervals (`retain.results.analysis.effects`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retain.results.analysis.effects import Effect, frontier_gap, hypervolume_gain, paired_difference, worst_of
from retain.results.analysis.methods import SEEDS, Points, has_losses, points_by_seed, seed_of
from retain.results.claims.frontier import AFTER, BEFORE, View
from retain.results.store.loss_table import LOSSES, Row

RECIPE = "recipe"
"""The axis that names the recipes."""
RECOMMENDED = "recommended"
ON_FRONTIER = "frontier-"
"""Before the number of a recommended recipe where a search for a frontier has several: they are compared as one."""
GRID_BEST = "grid-best"
DEFAULT = "default"


@dataclass(frozen=True)
class FrontierContrast:
    """The recommended frontier against another one in a plane of two losses."""

    view: View
    other: str
    gain: Effect
    """The hypervolume of the recommended one less that of the other, in squared nats: above 0 it is better."""
    gap: Effect
    """The height of the recommended hull less that of the other at matched x, in nats: below 0 it is better."""
    checkpoints: tuple[int, int]
    """At most so many a seed, of the recommended and of the other: more of them alone make a frontier better."""


@dataclass(frozen=True)
class LossContrast:
    """The recommended recipe's loss less another one's, over the same fine-tunings, in nats: below 0 it is better."""

    loss: str
    other: str
    difference: Effect


def frontier_contrasts(rows: Sequence[Row]) -> list[FrontierContrast]:
    """The recommended recipe against each other one, in both views; empty where nothing is recommended or compared yet.

    Hypervolumes reach up to the worst losses on the Pareto sets of both, over all seeds. A checkpoint counts once its
    counterparts in all recipes are there too.
    """
    found = []
    for view in (AFTER, BEFORE):
        points = {
            name: points_by_seed(group, view.x, view.y) for name, group in _by_recipe(rows, (view.x, view.y)).items()
        }
        for name in points:
            if name != RECOMMENDED and points.get(RECOMMENDED) and points[name]:
                found.append(_contrast(view, name, points[name], points[RECOMMENDED]))
    return found


def loss_contrasts(rows: Sequence[Row]) -> list[LossContrast]:
    """Each of the four losses of the recommended recipe against each other one's, a mean over its fine-tunings per seed.

    Of several recommended recipes, as of a frontier, none: their means would say nothing.
    """
    if not any(row["axes"].get(RECIPE) == RECOMMENDED for row in rows):
        return []
    found = []
    for loss in LOSSES:
        means = {name: _means(group, loss) for name, group in _by_recipe(rows, (loss,)).items()}
        for name in means:
            if name != RECOMMENDED and means.get(RECOMMENDED) and means[name]:
                found.append(LossContrast(loss, name, paired_difference(means[name], means[RECOMMENDED])))
    return found


def _contrast(
    view: View, name: str, other: Mapping[int, Points], recommended: Mapping[int, Points]
) -> FrontierContrast:
    gain = hypervolume_gain(other, recommended, worst_of(other, recommended))
    most = (max(map(len, recommended.values())), max(map(len, other.values())))
    return FrontierContrast(view, name, gain, frontier_gap(other, recommended), most)


def _by_recipe(rows: Sequence[Row], losses: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each recipe that have these losses, without those whose counterpart in another recipe has not."""
    named = [row for row in rows if RECIPE in row["axes"]]
    settings = _varied(named)
    missing = {_setting(row, settings) for row in named if not has_losses(row, *losses)}
    found: dict[str, list[Row]] = {}
    for row in named:
        if _setting(row, settings) not in missing:
            found.setdefault(_name(row), []).append(row)
    return found


def _name(row: Row) -> str:
    name = str(row["axes"][RECIPE])
    return RECOMMENDED if name.startswith(ON_FRONTIER) else name


def _varied(rows: Sequence[Row]) -> list[str]:
    """The axes that recipes share, those that have several values within a recipe, and the seeds."""
    values: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        for axis, value in row["axes"].items():
            values.setdefault((row["axes"][RECIPE], axis), set()).add(repr(value))
    return sorted({axis for (_, axis), found in values.items() if len(found) > 1} | set(SEEDS))


def _setting(row: Row, names: Sequence[str]) -> str:
    return repr([row["axes"].get(name) for name in names])


def _means(rows: Sequence[Row], loss: str) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(seed_of(row), []).append(float(row[loss]))
    return {seed: sum(values) / len(values) for seed, values in by_seed.items()}
