"""Studies whose model starts from a checkpoint: its content enters keys, its name never does, and it must fit the study."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.data_facts import UNPREPARED, CheckpointFacts, Facts, checkpoint_of
from retain.sweeps.tree.recipes.point import models_of
from retain.sweeps.tree.tree import Tree, expand
from tests.studies import made_up_facts, tiny_fields

ADAPTERS = {"q_proj": 400, "k_proj": 0, "v_proj": 0, "o_proj": 200, "up_proj": 300, "down_proj": 300, "lm_head": 352}
COUNTS = ModelCounts(30_000, 25_000, 64, 320 * 32, True, ADAPTERS)
GPT2 = CheckpointFacts("abc", "gpt2", {"n_embd": 32}, 320, 64, "tokenizer", COUNTS)


def tree(
    checkpoint: CheckpointFacts = GPT2, vocabulary: int = 320, tokeniser: str = "tokenizer", **overrides: Any
) -> Tree:
    """The tree of a study of which every checkpoint has these facts, with the tokeniser of this fingerprint."""
    fields = {"grid": {}, "model": {"hf": "some/model"}, "tokenizer": None} | overrides
    file = check_study(tiny_fields(**fields), Path("tiny.yaml"))
    corpora = {
        (name, length): made_up_facts(check_study(tiny_fields(grid={}), Path("tiny.yaml"))).corpora[name, 32]
        for name in file.study.corpora
        for length in file.values("sequence_length")
    }
    models = {checkpoint_of(model): checkpoint for model in models_of(file) if model.hf}
    return expand(file, Facts(tokeniser, vocabulary, corpora, models))


def model_of(tree: Tree) -> Any:
    return json.loads(next(iter(tree.stages.values())).recipe)["model"]


def test_a_recipe_names_the_checkpoint_by_its_content() -> None:
    assert model_of(tree()) == {"family": "gpt2", "config": {"n_embd": 32}, "start": "abc"}
    fresh = tree(model={"hf": "some/model", "weights": "random"})
    assert model_of(fresh) == {"family": "gpt2", "config": {"n_embd": 32}}
    assert not fresh.stages.keys() & tree().stages.keys()


def test_another_name_keeps_every_key_and_another_content_changes_every_key() -> None:
    renamed = tree(model={"hf": "./elsewhere", "revision": "v2"})
    assert renamed.stages.keys() == tree().stages.keys()
    other = tree(CheckpointFacts("def", "gpt2", {"n_embd": 32}, 320, 64, "tokenizer", COUNTS))
    assert not other.stages.keys() & tree().stages.keys()


def test_keys_are_provisional_and_nothing_is_priced_until_the_checkpoint_is_prepared() -> None:
    unprepared = tree(CheckpointFacts(UNPREPARED + "1"))
    assert unprepared.provisional
    totals = total_cost(unprepared, (), "H100")
    assert (totals.flops, totals.gpu_hours, totals.disk_bytes) == (0, 0, 0)
    assert not tree().provisional


def test_costs_follow_from_the_checkpoints_numbers_of_parameters() -> None:
    totals = total_cost(tree(), (), "H100")
    assert totals.flops == (7680 + 5120 + 5120) * (6 * 25_000 + 12 * 64 * 32)
    assert totals.disk_bytes == 3 * 4 * 30_000
    adapted = total_cost(tree(**{"finetune.method": "lora", "finetune.lora": {"rank": 2}}), (), "H100")
    trained = 2 * (200 + 300 + 300 + 352)
    assert totals.flops - adapted.flops == 5120 * (2 * 25_000 - 6 * trained)
    assert adapted.disk_bytes - totals.disk_bytes == 4 * 320 * 32, "the head is untied"


def test_names_of_matrices_that_the_family_lacks_leave_the_recipe() -> None:
    one, other = (
        tree(**{"finetune.method": "lora", "finetune.lora": {"targets": targets}})
        for targets in (["up_proj", "gate_proj"], ["up_proj"])
    )
    assert one.stages.keys() == other.stages.keys()


@pytest.mark.parametrize(
    ("overrides", "vocabulary", "sentence"),
    [
        (
            {"sequence_length": 65},
            320,
            "tiny.yaml: sequence_length: 65 exceeds the context of 64 of some/model; lower sequence_length, or start from "
            "another checkpoint",
        ),
        (
            {"tokenizer": {"hf": "some/tokenizer"}},
            321,
            "tiny.yaml: tokenizer: its 321 entries exceed the 320 rows of the embedding of some/model; leave tokenizer out "
            "to take the checkpoint's own",
        ),
        (
            {"finetune.method": "lora", "finetune.lora": {"targets": ["q_proj"]}},
            320,
            "tiny.yaml: finetune.lora.targets: GPT-2 has one matrix for q_proj, k_proj, v_proj; name all three, or none of "
            "them",
        ),
    ],
)
def test_a_study_that_does_not_fit_its_checkpoint_is_refused(
    overrides: dict[str, Any], vocabulary: int, sentence: str
) -> None:
    with pytest.raises(StudyError) as refused:
        tree(vocabulary=vocabulary, **overrides)
    assert str(refused.value) == sentence


def test_checkpoints_with_other_tokenisers_cannot_share_a_study_without_one_tokeniser() -> None:
    other = CheckpointFacts("abc", "gpt2", {}, 320, 64, "another", COUNTS)
    with pytest.raises(StudyError, match="has another tokeniser than the study's other checkpoints; name one"):
        tree(other)
    assert tree(other, tokenizer={"hf": "some/tokenizer"}).stages


def test_a_study_is_planned_when_its_checkpoint_is_prepared_and_its_tokeniser_is_not_yet() -> None:
    assert tree(tokeniser=UNPREPARED + "1").stages


def test_checkpoints_may_be_an_axis() -> None:
    found = tree(grid={"model.hf": ["a/one", "a/two"], "finetune.lr": [1e-4, 2e-4]})
    assert [trial.axes["model.hf"] for trial in found.trials] == ["a/one", "a/one", "a/two", "a/two"]
    mixed = tree(grid={"model": [{"hf": "a/one"}, "laptop"]}, tokenizer={"train": 320})
    assert [model_of(mixed).get("start"), len(mixed.trials)] == ["abc", 2]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"hf": "a/b", "layers": 2}, "model.hf: the checkpoint sets the architecture; remove layers"),
        ({"hf": "a/b", "preset": "laptop"}, "model.hf: the checkpoint sets the architecture; remove preset"),
        ({"preset": "laptop", "weights": "random"}, "model.weights: valid only for a checkpoint; name it with hf, or"),
        ({"preset": "laptop", "revision": "main"}, "model.revision: valid only for a checkpoint; name it with hf, or"),
        ("laptop", "tokenizer: this field is required unless model.hf names a checkpoint"),
    ],
)
def test_fields_that_contradict_a_checkpoint_are_refused(model: Any, sentence: str) -> None:
    with pytest.raises(StudyError) as refused:
        check_study(tiny_fields(model=model, tokenizer=None), Path("tiny.yaml"))
    assert sentence in str(refused.value)
