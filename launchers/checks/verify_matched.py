"""Checks matched allocation: along every trial each sequence of D_post is seen exactly once, in Stage 1 or in Stage 2."""

import functools
import json
from collections.abc import Collection
from typing import Any

import numpy as np

from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.order.batches import stage_batches
from retain.datamodules.order.mixtures import Subset
from retain.datamodules.order.permutation import Indices
from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.store.verify import Problem
from retain.sweeps.tree.tree import Stage, Trial

CHUNK = 1 << 20
EXPOSED, POST = 1, 0
"""The number of D_post among the subsets of an order: in Stage 1, and in Stage 2."""


def matched_problems(opened: OpenedStudy, damaged: Collection[str] = ()) -> list[Problem]:
    """The done trials with matched allocation (paper, Figure 3b) that see a sequence of D_post twice or never.

    damaged: the runs that cannot be checked.

    Every position of both stages is followed to its sequence; that a run consumed these is checked by its data digest.
    """
    tree = opened.tree
    matched = [trial for trial in tree.trials if _is_matched(opened, trial)]
    states = opened.store.states({key for trial in matched for key in trial.path if key not in damaged})
    problems = []

    @functools.cache
    def sequences(key: str, index: int) -> Indices:
        return _sequences(opened, tree.stages[key], index)

    for pretrain, posttrain in dict.fromkeys((trial.key("pretrain"), trial.key("posttrain")) for trial in matched):
        path = [(key, index) for key, index in ((pretrain, EXPOSED), (posttrain, POST)) if key is not None]
        if any(key in damaged or states[key].state != "done" for key, _ in path):
            continue
        seen = np.sort(np.concatenate([sequences(key, index) for key, index in path]))
        wanted = np.sort(_d_post(opened, [tree.stages[key] for key, _ in path]))
        if not np.array_equal(seen, wanted):
            twice, never = len(seen) - len(np.unique(seen)), len(np.setdiff1d(wanted, seen))
            what = f"of {len(wanted)} sequences of D_post, {twice} are seen twice and {never} never"
            what += "; delete this branch and train it again"
            problems.append(Problem(path[-1][0], what))
    return problems


def _is_matched(opened: OpenedStudy, trial: Trial) -> bool:
    # Without a Stage 1 or 2 there is nothing to divide.
    if not {"pretrain", "posttrain"} <= set(trial.names):
        return False
    return str(trial.axes.get("allocation", getattr(opened.file.study, "allocation", None))) == "matched"


def _sequences(opened: OpenedStudy, stage: Stage, index: int) -> Indices:
    """The indices, in their corpus, of all sequences that a stage draws from one of its subsets, in order."""
    recipe = json.loads(stage.recipe)
    if index == EXPOSED and not recipe["exposure"]:
        return np.empty(0, np.int64)
    order = stage_batches(recipe, opened.store.root).order
    drawn = []
    for first in range(0, order.total, CHUNK):
        source, sequence = order.locate(np.arange(first, min(first + CHUNK, order.total), dtype=np.int64))
        drawn.append(sequence[source == index])
    return np.concatenate(drawn)


def _d_post(opened: OpenedStudy, path: list[Stage]) -> Indices:
    """The indices, in their corpus, of the sequences of D_post: the first of its seeded shuffle."""
    recipes = [json.loads(stage.recipe) for stage in path]
    parts: list[dict[str, Any]] = [part for part in (recipes[0]["exposure"], *recipes[1:]) if part]
    corpus, count = parts[0]["corpus"], sum(part["distinct"] for part in parts)
    size = packed_corpus(opened.store.root, corpus).count("train")
    whole = Subset(corpus, size, count, 0, recipes[0]["subset_seed"])
    return whole.sequences(np.arange(count, dtype=np.int64))
