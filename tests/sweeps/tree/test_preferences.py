"""Stages that learn from pairs: the reference runs that they share, what they count, and what a plan refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import REFERENCE
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.data_facts import CorpusFacts, Facts, checkpoint_of
from retain.sweeps.tree.evaluation_runs import asked_columns, asked_evaluations
from retain.sweeps.tree.recipes.point import models_of
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import OBJECTIVE, Stage, Tree, expand
from tests.studies import made_up_facts, tiny_fields
from tests.sweeps.tree.test_checkpoint_recipes import GPT2

PAIRS = {"files": "pairs.jsonl", "prompt": "{q}", "chosen": "{a}", "rejected": "{b}"}
DPO = {"corpora.pairs": PAIRS, "finetune.corpus": "pairs", "finetune.objective": {"dpo": 0.1}, "finetune.tokens": 2560}
LATER = {"corpus": "general", "tokens": 2560, "lr": 1e-3, "batch": 8}
PAIR = 2 * 32
"""The tokens of a pair."""


def tree_of(fields: dict[str, Any], pairs: int = 100, heldout: int = 10) -> Tree:
    file = check_study(fields, Path("tiny.yaml"))
    facts = made_up_facts(file)
    corpora = {
        place: replace(one, train=pairs, heldout=heldout) if place[0] == "pairs" else one
        for place, one in facts.corpora.items()
    }
    return expand(file, replace(facts, corpora=corpora))


def preferring(grid: dict[str, Any] | None = None, **overrides: Any) -> Tree:
    return tree_of(tiny_fields(**{"grid": grid or {}, **DPO, **overrides}))


def references(tree: Tree) -> list[Stage]:
    return [stage for stage in tree.stages.values() if stage.stage == REFERENCE]


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ({"finetune.objective.dpo": [0.1, 0.5]}, 1),
        ({"finetune.lr": [1e-4, 1e-3], "finetune.seed": [0, 1]}, 1),
        ({"finetune.tokens": [1280, 2560]}, 1),
        ({"finetune.method": ["full", "lora"]}, 1),
        ({"finetune.objective": [None, {"dpo": 0.1}]}, 1),
        ({"subset_seed": [0, 1]}, 2),  # of other weights
        ({"posttrain.tokens": [1280, 2560]}, 2),
    ],
)
def test_stages_that_start_there_with_the_corpus_share_one_reference(grid: dict[str, Any], count: int) -> None:
    tree = preferring(grid)
    found = references(tree)
    assert len(found) == count
    for trial in tree.trials:
        leaf = tree.stages[trial.leaf]
        if '"objective"' in leaf.recipe:
            (own,) = leaf.also
            assert tree.stages[own].parent == leaf.parent
            assert tree.runs_of(trial) == [*trial.path[:2], own, leaf.key]
        else:
            assert not leaf.also
    assert tree.chain == ["pretrain", "posttrain", REFERENCE, "finetune"]


def test_a_reference_is_of_all_pairs_of_a_corpus_and_costs_a_forward_pass() -> None:
    tree = preferring({"finetune.objective.dpo": [0.1, 0.5]})
    (reference,) = references(tree)
    assert json.loads(reference.recipe) == {"measure": REFERENCE, "corpus": "pairs-32", "sequence_length": 32}
    assert reference.tokens == (100 + 10) * PAIR
    assert reference.axes == {"finetune.corpus": "pairs"}
    without = replace(tree, stages={key: one for key, one in tree.stages.items() if key != reference.key})
    whole, rest = (total_cost(one, (), "H100") for one in (tree, replace(without, trials=[])))
    share = (whole.flops - rest.flops) / reference.tokens
    pretrain = next(iter(tree.stages.values()))
    trained = total_cost(replace(tree, stages={pretrain.key: pretrain}, trials=[]), (), "H100").flops / pretrain.tokens
    assert share == pytest.approx(trained / 3, rel=1e-3)
    assert whole.tokens == rest.tokens + reference.tokens
    assert whole.disk_bytes == rest.disk_bytes + 8 * 2 * 110


def test_tokens_and_batches_count_both_responses() -> None:
    tree = preferring({"finetune.tokens": [40 * PAIR, 40 * PAIR + PAIR - 1]})
    leaves = {trial.leaf for trial in tree.trials}
    assert len(leaves) == 1
    leaf = tree.stages[leaves.pop()]
    recipe = json.loads(leaf.recipe)
    assert (recipe["sequences"], recipe["distinct"], recipe["batch"], recipe["steps"]) == (80, 80, 8, 10)
    assert leaf.tokens == 40 * PAIR
    further = preferring(
        stages=["pretrain", "posttrain", "finetune", "last"],
        last={**LATER, "corpus": "pairs", "objective": {"dpo": 1}, "tokens": 10 * PAIR, "skip": 10 * PAIR + 5},
    )
    recipe = json.loads(further.stages[further.trials[0].leaf].recipe)
    assert (recipe["first"], recipe["sequences"]) == (20, 20)


def test_exposure_to_pairs_is_to_their_chosen_responses() -> None:
    fields = {"posttrain.corpus": "pairs", "posttrain.tokens": 40 * PAIR, "posttrain.max_tokens": None}
    learned = {**fields, "finetune.corpus": "chemistry", "finetune.objective": None, "pretrain.exposure": 0.5}
    tree = preferring(**learned, **{"posttrain.objective": {"dpo": 0.2}})
    first = json.loads(next(iter(tree.stages.values())).recipe)
    assert first["exposure"] == {"corpus": "pairs-32", "distinct": 20, "sequences": 20}
    # As an axis, both kinds of post-training have the D_post that they learn from.
    both = preferring(**learned, grid={"posttrain.objective": [None, {"dpo": 0.2}]})
    roots = [json.loads(stage.recipe)["exposure"]["sequences"] for stage in both.stages.values() if not stage.parent]
    assert roots == [40, 20]


@pytest.mark.parametrize(
    ("exposure", "axis", "labels"),
    [
        (0.5, {"posttrain.objective": [None, {"dpo": 0.2}]}, [{OBJECTIVE: None}, {OBJECTIVE: "dpo"}]),
        (0.5, {"posttrain.objective": [None, {"dpo": 0.2}, {"dpo": 1}]}, [{OBJECTIVE: None}, {OBJECTIVE: "dpo"}]),
        (0.5, {"posttrain.objective": [{"dpo": 0.2}, {"dpo": 1}]}, [{}]),
        (0.0, {"posttrain.objective": [None, {"dpo": 0.2}]}, [{}]),
    ],
)
def test_a_pretraining_is_labelled_with_the_objective_where_it_decides_what_is_mixed_in(
    exposure: float, axis: dict[str, Any], labels: list[dict[str, Any]]
) -> None:
    fields = {"posttrain.corpus": "pairs", "posttrain.tokens": 40 * PAIR, "posttrain.max_tokens": None}
    learned = {**fields, "finetune.corpus": "chemistry", "finetune.objective": None, "pretrain.exposure": exposure}
    tree = preferring(axis, **learned)
    assert [stage.axes for stage in tree.stages.values() if stage.parent is None] == labels
    # The stages below have the values themselves.
    chosen = [tree.stages[trial.keys[1] or ""].axes[OBJECTIVE] for trial in tree.trials]
    assert chosen == axis[OBJECTIVE]


def test_stages_below_are_measured_on_the_pairs_that_were_learned() -> None:
    tree = preferring(
        **{
            "posttrain": {**LATER, "corpus": "pairs", "objective": {"dpo": 0.2}},
            "finetune.corpus": "chemistry",
            "finetune.objective": None,
        }
    )
    (reference,) = references(tree)
    assert all(reference.key in tree.stages[tree.trials[0].key(name) or ""].also for name in ("posttrain", "finetune"))
    names = [
        f"{stage}/pairs/{name}" for stage in ("posttrain", "finetune") for name in ("dpo_loss", "accuracy", "margin")
    ]
    assert {name: asked_columns(tree)[name] for name in names} == dict(zip(names, 2 * [False, True, True], strict=True))
    assert not any(name.startswith("pretrain/") for name in asked_columns(tree))


def test_a_stage_that_learns_from_pairs_may_have_a_mixture_of_nothing() -> None:
    assert list(preferring(**{"finetune.mix.music.share": 0}).stages) == list(preferring().stages)


def test_averages_are_measured_on_pairs_too() -> None:
    tree = preferring({"finetune.average": [0.5, 1]})
    (reference,) = references(tree)
    found = [one for one in asked_evaluations(tree).values() if one.axes["evaluate.corpora"] == "pairs"]
    (one,) = found
    assert json.loads(one.recipe)["preferences"] == {"dpo": 0.1, "reference": reference.key}
    assert reference.key in one.needs


def test_a_reference_runs_as_the_study_says_on_one_device() -> None:
    own = Execution.model_validate({"devices": 8, "slurm": {"nodes": 2}}).of_stage(REFERENCE)
    assert (own.devices, own.slurm.nodes) == (1, 1)


def test_a_study_scaled_down_for_a_drill_still_reads_whole_pairs() -> None:
    file = check_study(tiny_fields(**{"grid": {"finetune.objective.dpo": [0.1, 0.5]}, **DPO}), Path("tiny.yaml"))
    short = scale_down(file)
    tree = expand(short, made_up_facts(short))
    assert json.loads(tree.stages[tree.trials[0].leaf].recipe)["sequences"] % 2 == 0


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"finetune.objective": {"dpo": 0}}, "finetune.objective.dpo: must be greater than 0"),
        ({"finetune.objective": {"dpo": -1}}, "finetune.objective.dpo: must be greater than 0"),
        ({"finetune.objective": {}}, "finetune.objective.dpo: this field is required"),
        ({"pretrain.objective": {"dpo": 1}}, "pretrain.objective: unknown field"),
        (
            {"finetune.corpus": "chemistry"},
            "finetune.objective: dpo trains on pairs, and corpus chemistry has no chosen and rejected (corpora of "
            "pairs: pairs); name a corpus of pairs, or remove finetune.objective",
        ),
        ({"finetune.batch": 7}, "finetune.batch: 7 sequences are not whole pairs of two; write an even number"),
        (
            {"finetune.mix": {"music": {"tokens": 320}}},
            "finetune.mix: a stage with objective reads the pairs of its corpus",
        ),
        ({"finetune.tokens": 40}, "finetune.tokens: 40 tokens are less than one pair of sequences of 32"),
        (
            {"finetune.tokens": 101 * PAIR},
            "finetune.tokens: 6,464 tokens exceed the training split of corpus pairs, which has 6,400",
        ),
        (
            {"posttrain.corpus": "pairs", "posttrain.objective": {"dpo": 1}, "posttrain.replay": 0.1},
            "posttrain.replay: a stage with objective reads the pairs of its corpus alone",
        ),
        (
            {
                "posttrain": {**LATER, "corpus": "pairs", "objective": {"dpo": 1}},
                "pretrain.exposure": 0.5,
                "allocation": "matched",
            },
            "allocation: matched divides one pass over D_post, and posttrain with objective trains on it in another way",
        ),
        (
            {"stages": ["finetune"], "pretrain": None, "posttrain": None},
            "finetune.objective: dpo compares with the model that a stage starts from, and finetune is the first stage",
        ),
        (
            {"stages": ["pretrain", "reference", "posttrain", "finetune"], "reference": LATER},
            "reference has another meaning in a study; give the stage another name",
        ),
    ],
)
def test_what_cannot_be_combined_is_one_sentence_that_names_the_field_and_the_cure(
    fields: dict[str, Any], problem: str
) -> None:
    whole = tiny_fields(**{"grid": {}, **DPO, **fields})
    with pytest.raises(StudyError) as error:
        tree_of({name: part for name, part in whole.items() if part is not None})
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_stage_may_learn_from_pairs_if_it_starts_from_a_checkpoint() -> None:
    fields = tiny_fields(
        stages=["finetune"], model={"hf": "some/model"}, grid={"finetune.objective.dpo": [0.1, 0.5]}, **DPO
    )
    for name in ("pretrain", "posttrain", "tokenizer"):
        del fields[name]

    def planned(**more: Any) -> Tree:
        file = check_study(fields | more, Path("tiny.yaml"))
        corpora = {(name, 32): CorpusFacts(f"{name}-32", 100, 10) for name in file.study.corpora}
        checkpoints = {checkpoint_of(model): GPT2 for model in models_of(file)}
        return expand(file, Facts("tokenizer", 320, corpora, checkpoints))

    found = planned()
    (reference,) = references(found)
    recipe = json.loads(reference.recipe)
    assert reference.parent is None
    assert recipe["model"] == json.loads(found.stages[found.trials[0].leaf].recipe)["model"]
    assert {found.stages[trial.leaf].also for trial in found.trials} == {(reference.key,)}
    assert found.chain == [REFERENCE, "finetune"]
    assert total_cost(found, (), "H100").flops > 0
    within = planned(documents={"attention": "within"})
    assert json.loads(references(within)[0].recipe)["documents"] == {"attention": "within"}
