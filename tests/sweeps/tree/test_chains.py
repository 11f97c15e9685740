"""Chains of named stages: their trees and keys, and what is refused at plan time."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.key_diff import differences
from retain.sweeps.tree.tree import Tree, expand
from tests.studies import TINY, made_up_facts, tiny_fields, tiny_tree

SECTION = {"corpus": "general", "tokens": 2560, "lr": 1e-3, "batch": 8}
CARRY = {"optimizer": "carry"}


def chain_fields(*stages: str, **overrides: Any) -> dict[str, Any]:
    """The tiny study with these stages, each with a section, and without a grid; overrides as in `tiny_fields`."""
    sections = {name: SECTION for name in stages if name not in STAGE_KINDS}
    fields = tiny_fields(**{"stages": list(stages), "grid": {}, **sections} | overrides)
    return {name: part for name, part in fields.items() if name in stages or name not in STAGE_KINDS}


def chain_tree(*stages: str, **overrides: Any) -> Tree:
    return tree_of(chain_fields(*stages, **overrides))


def tree_of(fields: dict[str, Any]) -> Tree:
    file = check_study(fields, Path("tiny.yaml"))
    return expand(file, made_up_facts(file))


def names(tree: Tree) -> list[str]:
    return [stage.stage for stage in tree.stages.values()]


@settings(max_examples=30)
@given(
    exposure=st.sampled_from([0, 0.5, 1]), allocation=st.sampled_from(["additive", "matched"]), lr=st.floats(1e-5, 1e-2)
)
def test_the_papers_stages_given_as_a_chain_have_the_keys_of_the_default(
    exposure: float, allocation: str, lr: float
) -> None:
    overrides = {"grid": {"pretrain.exposure": [exposure], "finetune.lr": [lr, 2 * lr]}, "allocation": allocation}
    assert tiny_tree(**overrides, stages=list(STAGE_KINDS)) == tiny_tree(**overrides)


def test_each_stage_of_a_chain_starts_from_the_one_before() -> None:
    tree = chain_tree("pretrain", "midtrain", "posttrain", "finetune", "finetune2")
    assert names(tree) == tree.chain == ["pretrain", "midtrain", "posttrain", "finetune", "finetune2"]
    (trial,) = tree.trials
    assert trial.path == tuple(tree.stages)
    assert [tree.stages[key].parent for key in trial.path] == [None, *trial.path[:-1]]
    assert trial.key("midtrain") == trial.path[1]
    assert (trial.leaf, trial.key("posttrain2")) == (trial.path[4], None)


def test_a_stage_may_be_the_only_one_and_any_stage_may_be_the_first() -> None:
    assert names(chain_tree("pretrain")) == ["pretrain"]
    tree = chain_tree("base", "finetune")
    first = json.loads(next(iter(tree.stages.values())).recipe)
    assert (first["model"]["layers"], first["tokenizer"]) == (2, "tokenizer")
    assert names(tree) == ["base", "finetune"]


def test_the_axes_of_a_further_stage_split_it_and_the_stages_below_it_only() -> None:
    tree = chain_tree("pretrain", "midtrain", "posttrain", "finetune", grid={"midtrain.lr": [1e-3, 2e-3]})
    assert [names(tree).count(stage) for stage in tree.chain] == [1, 2, 2, 2]
    assert [tree.stages[trial.leaf].axes for trial in tree.trials] == [{"midtrain.lr": 1e-3}, {"midtrain.lr": 2e-3}]
    assert next(iter(tree.stages.values())).axes == {}


def test_cases_set_fields_of_a_further_stage() -> None:
    cases = {"data": {"fresh": {"midtrain.skip": 7680}, "again": {"midtrain.passes": 2}}}
    tree = chain_tree("pretrain", "midtrain", cases=cases)
    recipes = [json.loads(stage.recipe) for stage in tree.stages.values() if stage.stage == "midtrain"]
    assert [(recipe.get("first"), recipe["distinct"], recipe["sequences"]) for recipe in recipes] == [
        (240, 80, 80),
        (None, 80, 160),
    ]


@pytest.mark.parametrize("other", ["annealing", "X9"])
def test_renaming_a_further_stage_retrains_nothing(other: str) -> None:
    one = chain_tree("pretrain", "midtrain", "finetune", midtrain=SECTION)
    two = chain_tree("pretrain", other, "finetune", **{other: SECTION})
    assert list(one.stages) == list(two.stages)
    path = [{"stage": "further", "name": name, "recipe": {"lr": 1}} for name in ("midtrain", other)]
    assert differences(path[:1], path[1:]) == []
    assert [one.field for one in differences(path[:1], [path[1] | {"recipe": {"lr": 2}}])] == ["midtrain.lr"]


def test_a_further_stage_is_never_the_same_run_as_one_of_the_papers() -> None:
    section = TINY["finetune"]
    assert (
        chain_tree("pretrain", "finetune").trials[0].leaf != chain_tree("pretrain", "sft", sft=section).trials[0].leaf
    )


def test_a_stage_that_has_nothing_to_train_is_skipped_by_the_stages_around_it() -> None:
    overrides = {"allocation": "matched", "pretrain.exposure": 1}
    (trial,) = chain_tree("pretrain", "midtrain", "posttrain", "finetune", **overrides).trials
    assert trial.key("posttrain") is None
    assert trial.path == (trial.key("pretrain"), trial.key("midtrain"), trial.key("finetune"))
    without, with_it = chain_tree("pretrain", "midtrain", "finetune", grid={"midtrain.tokens": [0, 640]}).trials
    assert without.key("midtrain") is None
    assert without.path == chain_tree("pretrain", "finetune").trials[0].path
    assert len(with_it.path) == 3
    with pytest.raises(StudyError, match=r"midtrain\.tokens: 0 tokens are less than one sequence"):
        chain_tree("midtrain", "finetune", **{"midtrain.tokens": 0})


def test_a_stage_with_a_mixture_is_left_out_by_a_case_that_empties_both() -> None:
    chain, mixed = ("pretrain", "midtrain", "finetune"), {"midtrain.mix": {"music": {"tokens": 320}}}
    with pytest.raises(StudyError, match=r"without: \{midtrain\.tokens: 0, midtrain\.mix: \{\}\}"):
        chain_tree(*chain, **mixed, grid={"midtrain.tokens": [0, 640]})
    cases = {"mid": {"without": {"midtrain.tokens": 0, "midtrain.mix": {}}, "with": {"midtrain.tokens": 640}}}
    without, with_it = chain_tree(*chain, **mixed, cases=cases).trials
    assert (len(without.path), len(with_it.path)) == (2, 3)


def test_stages_that_branch_off_one_trunk_share_it_and_its_optimizer() -> None:
    grid = {"decay.min_lr": [0, 1e-4, 1e-3]}
    tree = chain_tree("pretrain", "decay", **{"decay.start": CARRY}, grid=grid)
    trunk = next(iter(tree.stages))
    assert tree.carried() == {trunk}
    assert [names(tree).count(stage) for stage in tree.chain] == [1, 3]
    # Keeping the moments changes no weights, so it is not in the trunk's key.
    assert next(iter(chain_tree("pretrain", "decay", grid=grid).stages)) == trunk
    assert not set(tree.stages) - {trunk} & set(chain_tree("pretrain", "decay", grid=grid).stages)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stages": ["pretrain", "midtrian"]}, "midtrain: unknown field; name the stage in `stages`"),
    (
        {"stages": ["pretrain"]},
        "midtrain: no stage has this name; write stages: [pretrain, midtrain] in your order, or",
    ),
    (
        {"stages": ["pretrain", "midtrain", "sft"]},
        "sft: this field is required, because `stages` names it; write its section, or",
    ),
    ({"stages": []}, "stages: too few values (got []); write at least 1"),
    ({"stages": "pretrain"}, "stages: expected a list, as in [a, b] (got 'pretrain')"),
    ({"stages": ["pretrain", "midtrain", "midtrain"]}, "stages: midtrain is named twice; give the second one a name"),
    ({"stages": ["pretrain", "mid-train"]}, "stages: 'mid-train' is not the name of a stage; write up to 40 letters"),
    ({"stages": ["midtrain", "pretrain"]}, "stages: pretrain starts from a new model; put it first"),
    ({"midtrain": None}, "midtrain: the section is null; write it, or leave midtrain out of stages"),
    ({"midtrain.start": CARRY, "stages": ["midtrain", "pretrain"]}, "stages: pretrain starts from a new model"),
    (
        {"midtrain.start": {"optimizer": "keep"}},
        "midtrain.start.optimizer: unknown value (got 'keep'); write new or carry",
    ),
    (
        {"midtrain.start": CARRY, "midtrain.method": "lora"},
        "midtrain.start: the optimizer cannot be carried over: midtrain",
    ),
    ({"midtrain.corpus": "web"}, "midtrain.corpus: unknown corpus 'web'; the corpora are general, music, chemistry"),
    ({"midtrain.passes": 2, "midtrain.max_tokens": 5120}, "midtrain.max_tokens: 2 passes already say how long"),
    ({"pretrain.exposure": 1}, "pretrain.exposure: D_post is the corpus of posttrain, which `stages` does not name"),
    ({"midtrain.skip": "32G"}, "midtrain.skip: 80 sequences after the first 1,000,000,000 exceed the 1,000,000,000 of"),
    ({"midtrain.replay": 0.1}, "midtrain.replay: unknown field; the known fields are"),
    ({"grid": {"stages": [["pretrain"]]}}, "grid.stages: stages cannot be an axis; write a second study file"),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_a_chain_that_cannot_be_trained_is_refused_with_field_and_cure(
    overrides: dict[str, Any], sentence: str
) -> None:
    fields = tiny_fields(**{"stages": ["pretrain", "midtrain"], "midtrain": SECTION, "grid": {}} | overrides)
    with pytest.raises(StudyError) as caught:
        tree_of({name: part for name, part in fields.items() if name not in ("posttrain", "finetune")})
    assert str(caught.value).startswith(f"tiny.yaml: {sentence}"), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["json", "pretraining", "2nd", "a b"])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(StudyError, match=r"another meaning|not the name of a stage"):
        check_study(chain_fields("pretrain", name), Path("tiny.yaml"))


def test_carrying_adamw_needs_a_parent_whose_moments_belong_to_its_weights() -> None:
    stopping = {"posttrain.early_stopping": {"every": 5, "patience": 2}}
    for fields, sentence in (
        (stopping, "posttrain ends with the weights of its best step"),
        ({"posttrain.method": "lora"}, "posttrain trains adapters, and finetune all weights"),
    ):
        with pytest.raises(StudyError, match=rf"finetune\.start: the optimizer cannot be carried over: {sentence}"):
            tiny_tree(**{"finetune.start": CARRY}, **fields)


def test_adapters_need_a_stage_before_them() -> None:
    with pytest.raises(
        StudyError, match=r"base\.method: lora trains adapters of a trained model, but base is the first"
    ):
        chain_tree("base", "finetune", **{"base.method": "lora"})
