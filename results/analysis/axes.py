"""The axes of trials: which of them vary, which values they take, and which trials differ in nothing else.

A row is one trial of the loss table; `row["axes"]` maps the study's axes to the trial's values.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from retain.results.store.loss_table import Row, chain_of
from retain.results.store.study_files import AXIS_OF_POINTS
from retain.sweeps.schema.section import STAGE_KINDS

METHOD, PIPELINE, RECIPE = "method", "pipeline", "recipe"
"""Axes of named cases: training methods, pairs of corpora, and recipes that a search compares."""
CORPORA = {"posttrain.corpus": "D_post", "finetune.corpus": "D_ft"}
"""The fields that make a pipeline, with what the paper calls their corpora."""
EXPOSURE, SIZE, RATE = "pretrain.exposure", "posttrain.tokens", "finetune.lr"
"""λ, |D_post| in tokens, and the learning rate of fine-tuning."""
SUBSET = "subset_seed"
"""The seed of the shuffle of each corpus, which decides the subsets that are trained on."""
SEEDS_VARY = "initialisation, order of the data, dropout and adapters, but not the subsets of the corpora"
SUBSETS_VARY = "the subsets of the corpora that are trained on, at one initialisation"
"""What repetitions differ in. The held-out splits are always the same documents."""

Item = TypeVar("Item")
Key = TypeVar("Key")


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key; keys and items keep their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def axis_names(rows: Iterable[Row]) -> list[str]:
    """All axes of the rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["axes"]))


def axis_values(rows: Iterable[Row], axis: str) -> list[Any]:
    """The different values of an axis, in order of appearance; rows without the axis are skipped."""
    values = (row["axes"][axis] for row in rows if axis in row["axes"])
    return list({repr(value): value for value in values}.values())


def is_seed(axis: str) -> bool:
    """Whether an axis is a seed: that of the study, of a stage, or of the subsets."""
    return axis == SUBSET or axis.rpartition(".")[2] == "seed"


def varied_axes(rows: Collection[Row]) -> list[str]:
    """The axes on which rows differ, without the seeds; having no value counts as a value of its own."""
    return [name for name in axis_names(rows) if not is_seed(name) and len({setting(row, [name]) for row in rows}) > 1]


def setting(row: Row, axes: Collection[str]) -> tuple[str, ...]:
    """A key that is equal for rows with equal values on these axes."""
    return tuple(repr(row["axes"].get(axis)) for axis in sorted(axes))


def seed_axis(row: Row) -> str | None:
    """The axis whose values are the independent repetitions of a trial; None if the study varies no seed.

    If stages have seeds of their own, the earliest varied one counts: trials that share their first stages are not
    independent repetitions. `subset_seed` counts if no other seed varies.
    """
    order = ["seed", *(f"{stage}.seed" for stage in row.get("losses") or STAGE_KINDS), SUBSET]
    return next((name for name in order if name in row["axes"]), None)


def seed_of(row: Row) -> int:
    """The value of the trial's `seed_axis`, 0 if the study varies no seed."""
    axis = seed_axis(row)
    return 0 if axis is None else int(row["axes"][axis])


def repetitions(arms: Sequence[Iterable[Row]]) -> dict[int, int]:
    """For each seed, the first seed with which it shares compared runs; the two count as one repetition of the comparison.

    arms: the trials of each side of the comparison. The compared runs are those of the first stage in which the arms differ. If
    only the seed of a later stage varies, all seeds share them.
    """
    by_arm = [list(arm) for arm in arms]
    chain = chain_of(by_arm[0][0]) if by_arm and by_arm[0] else ()
    runs_of = {stage: [{row["keys"].get(stage) for row in arm} for arm in by_arm] for stage in chain}
    stage = next((stage for stage, each in runs_of.items() if any(runs != each[0] for runs in each)), None)
    compared: dict[int, set[str]] = {}
    found: dict[int, int] = {}
    for seed, rows in sorted(grouped(itertools.chain(*by_arm), seed_of).items()):
        runs = {key for row in rows if (key := row["keys"].get(stage)) is not None}
        found[seed] = next((other for other, known in compared.items() if runs & known), seed)
        compared.setdefault(found[seed], set()).update(runs)
    return found


def is_subset_apart(row: Row) -> bool:
    """Whether a study varies `subset_seed` next to other seeds: trials on one subset are not independent, so each subset is a
    subject of its own."""
    return SUBSET in row["axes"] and any(is_seed(name) for name in row["axes"] if name != SUBSET)


def is_searched(row: Row) -> bool:
    """Whether a trial belongs to the points of a search or to the recipes that confirm it: they differ in several fields."""
    return AXIS_OF_POINTS in row["axes"] or RECIPE in row["axes"]
