"""The order of a stage with pairs: whole pairs, each response beside the other, whatever the number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.order.batches import recipe_digest, stage_batches
from retain.datamodules.order.digest import add_digests
from retain.datamodules.order.stage_data import PairBatch, StageData, read_pairs
from retain.sweeps.schema.read import read_study
from tests.datamodules.corpora.preferences.made_pairs import pair_study

RECIPE: dict[str, Any] = {
    "seed": 3,
    "subset_seed": 0,
    "batch": 8,
    "distinct": 40,
    "sequences": 60,
    "objective": {"dpo": 0.1},
}
"""Twenty distinct pairs, in one and a half passes of four pairs a step; the last step has two."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    study = pair_study(tmp_path_factory.mktemp("pairs"))
    facts = prepare(read_study(str(study)), study.parent / "runs")
    return study.parent / "runs", RECIPE | {"corpus": facts.corpora["pairs", 48].fingerprint}


def test_steps_read_whole_pairs_once_each_in_a_pass(prepared: tuple[Path, dict[str, Any]]) -> None:
    store, recipe = prepared
    batches = stage_batches(recipe, store)
    assert len(batches) == 8
    assert [len(batches.tokens(step)) for step in (0, 7)] == [8, 4]
    packed = packed_corpus(store, recipe["corpus"])
    pairs = read_pairs(packed, "train", np.arange(packed.count("train"))).numpy()
    known = {pair.tobytes() for pair in pairs.reshape(-1, 2 * 48)}
    read = [pair.tobytes() for step in range(8) for pair in batches.tokens(step).reshape(-1, 2 * 48)]
    assert set(read) <= known
    assert len(set(read[:20])) == 20
    assert set(read[20:]) <= set(read[:20])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_read_whole_pairs_of_the_same_global_batch(world: int, prepared: tuple[Path, dict[str, Any]]) -> None:
    store, recipe = prepared
    whole = stage_batches(recipe, store)
    ranks = [stage_batches(recipe, store, rank, world) for rank in range(world)]
    for step in (0, 7):
        own = [rank.tokens(step).reshape(-1, 2, 48) for rank in ranks]
        together = whole.tokens(step).reshape(-1, 2, 48)
        for rank, part in enumerate(own):
            assert (part == together[rank::world]).all()
        parts = add_digests(rank.digest(step, rank.tokens(step)) for rank in ranks)
        assert parts == whole.digest(step, whole.tokens(step))
    assert recipe_digest(recipe, store, 8) == add_digests(whole.digest(step, whole.tokens(step)) for step in range(8))


def test_an_ordinary_stage_reads_the_chosen_responses_of_the_same_pairs(prepared: tuple[Path, dict[str, Any]]) -> None:
    store, recipe = prepared
    plain = {name: value for name, value in recipe.items() if name != "objective"}
    once = recipe | {"sequences": 40}
    ordinary = stage_batches(plain | {"distinct": 20, "sequences": 20, "batch": 4}, store)
    chosen = [row.tobytes() for step in range(5) for row in ordinary.tokens(step)]
    pairs = [row.tobytes() for step in range(5) for row in stage_batches(once, store).tokens(step)[0::2]]
    assert chosen == pairs


def test_each_pair_comes_with_its_own_reference(prepared: tuple[Path, dict[str, Any]]) -> None:
    store, recipe = prepared
    packed = packed_corpus(store, recipe["corpus"])
    pairs = read_pairs(packed, "train", np.arange(packed.count("train")))
    # A reference that tells sequences apart: the sum of their tokens.
    reference = pairs.sum(dim=1).double().view(-1, 2)
    data = StageData(recipe, store, reference=reference)
    for batch in data.train_dataloader():
        assert isinstance(batch, PairBatch)
        assert torch.equal(batch.sequences.sum(dim=1).double(), batch.reference)
    data.next_step = 5
    later = next(iter(data.train_dataloader()))
    assert isinstance(later, PairBatch)
    assert (later.sequences.numpy() == data.batches.tokens(5)).all()
