"""What repetitions of a study differ in. `retain report` states it: see `SEEDS_VARY` and `SUBSETS_VARY`.

That the seed of a recipe draws the initial weights, dropout and adapters is tested in tests/lightning_modules.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from retain.datamodules.order.mixtures import stage_order
from retain.results.analysis.axes import SEEDS_VARY, SUBSETS_VARY
from tests.studies import tiny_tree

SIZE = 400
"""Sequences of each corpus; the stages below train on a part of them."""
STUDY: dict[str, Any] = {"pretrain.exposure": 0.5, "posttrain.replay": 0.1}


def recipes(axis: str) -> dict[str, list[dict[str, Any]]]:
    """The recipes of each kind of stage at two values of a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in tiny_tree(**STUDY, grid={axis: [0, 1]}).stages.values():
        found.setdefault(stage.stage, []).append(json.loads(stage.recipe))
    assert [len(pair) for pair in found.values()] == [2, 2, 2]
    return found


def read_in_order(recipe: dict[str, Any], passes: int = 1) -> list[tuple[str, int]]:
    """The sequences of the first passes over the stage's corpus, as (corpus, number), in the order in which they are read."""
    corpora = [recipe["corpus"], *(recipe[part]["corpus"] for part in ("exposure", "replay") if recipe.get(part))]
    order = stage_order(recipe, dict.fromkeys(corpora, SIZE))
    end = order.total if not hasattr(order, "start") else order.start(passes)
    source, sequence = order.locate(np.arange(end))
    return [(order.subsets[index].corpus, int(number)) for index, number in zip(source, sequence, strict=True)]


@pytest.mark.parametrize("axis", ["seed", "subset_seed"])
def test_a_seed_changes_one_field_of_each_recipe_and_never_the_heldout_splits(axis: str) -> None:
    """Held-out splits are chosen when a corpus is packed; recipes name it by the fingerprint of both splits."""
    for first, second in recipes(axis).values():
        assert {name for name in first if first[name] != second[name]} == {axis}


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "finetune"])
def test_seeds_read_the_same_sequences_of_every_corpus_in_another_order(stage: str) -> None:
    assert "order of the data" in SEEDS_VARY
    assert "not the subsets" in SEEDS_VARY
    first, second = (read_in_order(recipe) for recipe in recipes("seed")[stage])
    assert Counter(first) == Counter(second)
    assert first != second


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "finetune"])
def test_subset_seeds_read_other_sequences_of_every_corpus(stage: str) -> None:
    assert SUBSETS_VARY.startswith("the subsets of the corpora")
    first, second = (read_in_order(recipe) for recipe in recipes("subset_seed")[stage])
    for corpus in {corpus for corpus, _ in first}:
        mine, theirs = ({number for name, number in read if name == corpus} for read in (first, second))
        assert len(mine) == len(theirs)
        assert mine != theirs
