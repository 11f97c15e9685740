import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retain.datamodules.corpora.prepared import packed_corpus
from retain.datamodules.order.batches import Batches, recipe_digest, stage_batches
from retain.datamodules.order.digest import add_digests
from retain.datamodules.order.mixtures import stage_order
from retain.datamodules.order.stage_data import StageData, heldout_sequences
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.tree import expand
from tests.conftest import Prepared
from tests.studies import tiny_study

MIXED = {
    "grid": {},
    "pretrain.exposure": 0.5,
    "pretrain.batch": 7,
    "posttrain.replay": 0.1,
    "posttrain.batch": 7,
    "posttrain.mix": {"chemistry": {"share": 0.1}},
    "finetune.mix": {
        "music": [{"tokens": 320, "window": [0, 0.5]}, {"passes": 3, "of": 320, "window": [0.25, 1]}],
        "general": {"share": 0.2, "replaces": True},
    },
}


@pytest.fixture(scope="module")
def recipes(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The recipes of one trial, by stage, with exposure, replay, mixtures and a smaller last batch in every stage."""
    file = read_study(str(tiny_study(tmp_path_factory.mktemp("mixed"), **MIXED)))
    stages = expand(file, prepared.facts).stages.values()
    return {stage.stage: json.loads(stage.recipe) for stage in stages}


def batches(recipe: dict[str, Any], store: Path, world: int = 1) -> list[torch.Tensor]:
    """Assemble the global batch of each step from the batches of the ranks."""
    ranks = [stage_batches(recipe, store, rank, world) for rank in range(world)]
    global_batches = []
    for step in range(len(ranks[0])):
        parts = [torch.from_numpy(rank.tokens(step)) for rank in ranks]
        batch = torch.empty(sum(map(len, parts)), parts[0].shape[1], dtype=torch.int64)
        for rank, part in enumerate(parts):
            batch[rank::world] = part
        global_batches.append(batch)
    return global_batches


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "finetune"])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_global_batches_do_not_depend_on_the_number_of_ranks(
    prepared: Prepared, recipes: dict[str, dict[str, Any]], stage: str, world: int
) -> None:
    alone = batches(recipes[stage], prepared.store)
    shared = batches(recipes[stage], prepared.store, world)
    assert len(alone) == len(shared) == recipes[stage]["steps"]
    assert all(torch.equal(one, other) for one, other in zip(alone, shared, strict=True))


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "finetune"])
def test_a_stage_reads_all_its_sequences_in_batches_of_its_size(
    prepared: Prepared, recipes: dict[str, dict[str, Any]], stage: str
) -> None:
    recipe = recipes[stage]
    *full, last = map(len, batches(recipe, prepared.store))
    assert set(full) == {recipe["batch"]}
    assert sum(full) + last == recipe["sequences"]
    assert 0 < last <= recipe["batch"]


@pytest.mark.parametrize("stage", ["pretrain", "posttrain", "finetune"])
def test_the_tokens_read_are_those_of_the_packed_corpora(
    prepared: Prepared, recipes: dict[str, dict[str, Any]], stage: str
) -> None:
    recipe = recipes[stage]
    parts = [recipe, recipe.get("exposure"), recipe.get("replay"), *recipe.get("mix", [])]
    names = [part["corpus"] for part in parts if part]
    packed = {name: packed_corpus(prepared.store, name) for name in names}
    order = stage_order(recipe, {name: corpus.count("train") for name, corpus in packed.items()})
    source, sequence = order.locate(np.arange(order.total))
    read = torch.cat(batches(recipe, prepared.store)).numpy()
    assert set(source) == set(range(len(names)))
    for index, name in enumerate(names):
        rows = packed[name].sequences("train")[sequence[source == index]]
        assert (read[source == index] == rows).all()


@pytest.mark.parametrize("first", [0, 1, 17])
def test_a_loader_can_start_at_any_step(prepared: Prepared, recipes: dict[str, dict[str, Any]], first: int) -> None:
    data = StageData(recipes["posttrain"], prepared.store)
    data.next_step = first
    from_there = list(data.train_dataloader())
    expected = batches(recipes["posttrain"], prepared.store)[first:]
    assert len(from_there) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(from_there, expected, strict=True))


def test_a_rank_reads_nothing_if_the_last_batch_is_too_small_for_all_ranks(prepared: Prepared) -> None:
    fingerprint = prepared.facts.corpora["general", 32].fingerprint
    recipe = {"corpus": fingerprint, "distinct": 9, "sequences": 9, "subset_seed": 0, "seed": 0, "batch": 8}
    corpus = packed_corpus(prepared.store, fingerprint)
    order = stage_order(recipe, {fingerprint: corpus.count("train")})
    parts = [Batches(order, {fingerprint: corpus}, 8, rank, 4).tokens(1) for rank in range(4)]
    assert [len(part) for part in parts] == [1, 0, 0, 0]
    assert all(part.shape[1] == 32 and part.dtype == np.int64 for part in parts)


def test_no_held_out_sequence_is_read_in_training(prepared: Prepared, recipes: dict[str, dict[str, Any]]) -> None:
    for stage, recipe in recipes.items():
        read = {tuple(row) for batch in batches(recipe, prepared.store) for row in batch.tolist()}
        for corpus in prepared.facts.corpora.values():
            held = {tuple(row) for row in heldout_sequences(prepared.store, corpus.fingerprint).tolist()}
            assert held
            assert not read & held, stage


def test_held_out_sequences_are_the_whole_split_in_order(prepared: Prepared) -> None:
    facts = prepared.facts.corpora["music", 32]
    held = heldout_sequences(prepared.store, facts.fingerprint)
    assert held.shape == (facts.heldout, 32)
    assert held.dtype == torch.int64
    assert (held.numpy() == packed_corpus(prepared.store, facts.fingerprint).sequences("heldout")).all()


def test_a_stage_without_its_corpus_names_the_cure(tmp_path: Path, recipes: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(MissingResourceError, match="prepare the study's data again"):
        StageData(recipes["pretrain"], tmp_path)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_data_digest_of_all_ranks_is_that_of_the_recipe(
    prepared: Prepared, recipes: dict[str, dict[str, Any]], world: int
) -> None:
    recipe, steps = recipes["posttrain"], 9
    digests = []
    for rank in range(world):
        data = StageData(recipe, prepared.store, rank, world)
        for batch in list(data.train_dataloader())[:steps]:
            data.on_before_batch_transfer(batch, 0)
        assert data.next_step == steps
        digests.append(data.digest)
    assert add_digests(digests) == recipe_digest(recipe, prepared.store, steps)


def test_the_data_digest_changes_with_any_token_position_or_step(
    prepared: Prepared, recipes: dict[str, dict[str, Any]]
) -> None:
    whole = stage_batches(recipes["pretrain"], prepared.store)
    tokens = whole.tokens(0)
    changed = tokens.copy()
    changed[3, 5] += 1
    digests = {
        whole.digest(0, tokens),
        whole.digest(0, changed),
        whole.digest(0, tokens[::-1]),
        whole.digest(1, tokens),
    }
    assert len(digests) == 4


@pytest.mark.parametrize("stage", ["pretrain", "posttrain"])
@pytest.mark.parametrize("world", [1, 3])
def test_locating_steps_in_blocks_gives_the_same_batches_as_one_by_one(
    prepared: Prepared, recipes: dict[str, dict[str, Any]], stage: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retain.datamodules.order.batches.BLOCK", 40)
    rank = stage_batches(recipes[stage], prepared.store, world - 1, world)
    for first in (0, 1, len(rank) - 1):
        found = list(rank.prefetched_from_step(first))
        assert [batch.step for batch in found] == list(range(first, len(rank)))
        for batch in found:
            source, sequence = rank.order.locate(rank.positions(batch.step))
            assert (batch.source == source).all()
            assert (batch.sequence == sequence).all()


def test_the_data_digest_is_computed_from_the_batches_that_the_steps_received(
    prepared: Prepared, recipes: dict[str, dict[str, Any]]
) -> None:
    data = StageData(recipes["finetune"], prepared.store)
    for batch in list(data.train_dataloader())[1:4]:
        data.on_before_batch_transfer(batch, 0)
    assert data.digest != recipe_digest(recipes["finetune"], prepared.store, 3)


def test_the_data_digest_of_a_checkpoint_continues_after_resuming(
    prepared: Prepared, recipes: dict[str, dict[str, Any]]
) -> None:
    whole, resumed = (StageData(recipes["finetune"], prepared.store) for _ in range(2))
    batches = list(whole.train_dataloader())[:5]
    for step, batch in enumerate(batches):
        if step == 2:
            resumed.digest, resumed.next_step = whole.digest, step
        whole.on_before_batch_transfer(batch, 0)
    for batch in batches[2:]:
        resumed.on_before_batch_transfer(batch, 0)
    assert resumed.digest == whole.digest
