"""Anchors with `ewc`: the runs that estimate their Fisher information in the tree of a study, and what a plan refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.results.store.readiness import blocked_stages, is_ready
from retain.results.store.state import State
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import FISHER
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.scaled_down import FISHER_SEQUENCES, scale_down
from retain.sweeps.tree.tree import Stage, Tree, expand
from tests.studies import made_up_facts, tiny_fields, tiny_tree

ANCHOR = {"ewc": 10, "sequences": 16}
SECTION = {"corpus": "general", "tokens": 2560, "lr": 1e-3, "batch": 8}


def anchored(grid: dict[str, Any] | None = None, **overrides: Any) -> Tree:
    return tiny_tree(**{"grid": grid or {}, "finetune.anchor": ANCHOR, **overrides})


def plan(fields: dict[str, Any]) -> Tree:
    file = check_study(fields, Path("tiny.yaml"))
    return expand(file, made_up_facts(file))


def estimates(tree: Tree) -> list[Stage]:
    return [stage for stage in tree.stages.values() if stage.stage == FISHER]


def test_stages_with_one_start_share_one_estimate_below_it_and_need_it() -> None:
    tree = anchored({"finetune.anchor.ewc": [0, 1, 10], "finetune.lr": [1e-4, 1e-3]})
    (estimate,) = estimates(tree)
    leaves = [tree.stages[trial.leaf] for trial in tree.trials]
    assert {leaf.parent for leaf in leaves} == {estimate.parent}
    assert [leaf.needs for leaf in leaves] == 2 * [(estimate.parent,)] + 4 * [(estimate.parent, estimate.key)]
    assert list(tree.stages).index(estimate.key) < list(tree.stages).index(leaves[2].key)
    assert tree.chain == ["pretrain", "posttrain", FISHER, "finetune"]
    assert all(estimate.key not in trial.path for trial in tree.trials)
    assert tree.runs_of(tree.trials[-1]) == [*tree.trials[-1].path[:2], estimate.key, leaves[-1].key]


def test_a_strength_of_0_is_a_stage_without_an_anchor() -> None:
    assert anchored(**{"finetune.anchor": {"ewc": 0, "sequences": 16}}) == tiny_tree(grid={})


def test_an_estimate_reads_the_first_sequences_of_what_the_stage_before_takes() -> None:
    (estimate,) = estimates(anchored())
    assert json.loads(estimate.recipe) == {
        "measure": FISHER,
        "corpus": "music-32",
        "sequences": 16,
        "sequence_length": 32,
        "subset_seed": 0,
    }
    assert estimate.tokens == 16 * 32
    later = {"stages": ["pretrain", "posttrain", "midtrain", "finetune"], "midtrain": SECTION | {"skip": 640}}
    assert json.loads(estimates(anchored(**later))[0].recipe) == {
        **json.loads(estimate.recipe),
        "corpus": "general-32",
        "first": 20,
    }


@pytest.mark.parametrize(
    ("grid", "count"),
    [
        ({"posttrain.corpus": ["music", "general"]}, 2),
        ({"posttrain.tokens": [1280, 2560]}, 2),  # of other weights
        ({"finetune.anchor.sequences": [16, 32]}, 2),
        ({"finetune.corpus": ["chemistry", "general"]}, 1),
        ({"finetune.seed": [0, 1]}, 1),
        ({"subset_seed": [0, 1]}, 2),
    ],
)
def test_there_are_as_many_estimates_as_weights_and_sequences(grid: dict[str, Any], count: int) -> None:
    assert len(estimates(anchored(grid))) == count


def test_a_corpus_that_varies_in_cases_is_that_of_its_own_case() -> None:
    cases = {
        "pipeline": {
            "one": {"posttrain.corpus": "music", "finetune.corpus": "chemistry", "finetune.anchor": ANCHOR},
            "two": {"posttrain.corpus": "chemistry", "finetune.corpus": "music", "finetune.anchor": ANCHOR},
        }
    }
    tree = tiny_tree(grid={}, cases=cases)
    assert [json.loads(one.recipe)["corpus"] for one in estimates(tree)] == ["music-32", "chemistry-32"]


def test_with_all_of_d_post_in_pretraining_the_estimate_is_still_on_d_post() -> None:
    tree = anchored({"pretrain.exposure": [0, 1]}, allocation="matched", **{"posttrain.max_tokens": None})
    before, after = estimates(tree)
    assert [tree.stages[one.parent or ""].stage for one in (before, after)] == ["posttrain", "pretrain"]
    assert before.recipe == after.recipe


def test_behind_a_stage_that_is_left_out_the_estimate_is_on_the_corpus_of_the_stage_before_it() -> None:
    chain = {"stages": ["pretrain", "midtrain", "finetune"], "pretrain.corpus": "chemistry", "midtrain": SECTION}
    fields = tiny_fields(**{"grid": {"midtrain.tokens": [0, 2560]}, "finetune.anchor": ANCHOR, **chain})
    del fields["posttrain"]
    tree = plan(fields)
    found = [(tree.stages[one.parent or ""].stage, json.loads(one.recipe)["corpus"]) for one in estimates(tree)]
    assert found == [("pretrain", "chemistry-32"), ("midtrain", "general-32")]


def test_with_matched_allocation_the_estimate_is_on_the_first_sequences_of_d_post_at_any_exposure() -> None:
    grid = {"pretrain.exposure": [0, 0.5, 1]}
    tree = anchored(grid, allocation="matched", **{"posttrain.max_tokens": None})
    assert {(json.loads(one.recipe)["corpus"], json.loads(one.recipe).get("first")) for one in estimates(tree)} == {
        ("music-32", None)
    }


def test_a_failed_estimate_stops_the_stages_that_need_it_and_no_others() -> None:
    tree = anchored({"finetune.anchor.ewc": [0, 1]})
    (estimate,) = estimates(tree)
    plain, pulled = (trial.leaf for trial in tree.trials)
    done = {key: State(state="done") for key in tree.trials[0].path[:2]}
    states = done | dict.fromkeys((plain, pulled), State()) | {estimate.key: State(state="failed", reason="diverged")}
    assert blocked_stages(tree.stages, states) == {pulled: f"fisher {estimate.key[:8]} failed: diverged"}
    assert is_ready(tree.stages[plain], states)
    assert not is_ready(tree.stages[pulled], states | {estimate.key: State(state="running")})
    assert is_ready(tree.stages[pulled], states | {estimate.key: State(state="done")})
    assert [one.stage for one in tree.ancestors(pulled)] == ["pretrain", "posttrain", FISHER, "finetune"]


def test_an_estimate_costs_its_tokens_once_where_it_is_shared_and_in_each_trial_where_not() -> None:
    grid = {"finetune.anchor.ewc": [1, 10]}
    totals, plain = (
        total_cost(anchored(grid), (), "H100"),
        total_cost(tiny_tree(grid={"finetune.lr": [1, 10]}), (), "H100"),
    )
    tokens = 16 * 32
    assert (totals.stages, totals.jobs) == (plain.stages + 1, plain.jobs + 1)
    assert totals.tokens == plain.tokens + tokens
    assert totals.tokens_without_sharing == plain.tokens_without_sharing + 2 * tokens
    weights = plain.disk_bytes // plain.stages
    assert totals.disk_bytes == plain.disk_bytes + weights
    assert totals.freeable_bytes == plain.freeable_bytes + weights


def test_an_estimate_runs_as_the_study_says_on_one_device() -> None:
    execution = Execution.model_validate({"devices": 8, "precision": "fp32", "slurm": {"nodes": 2, "partition": "gpu"}})
    own = execution.of_stage(FISHER)
    assert (own.devices, own.precision, own.slurm.nodes, own.slurm.partition) == (1, "fp32", 1, "gpu")
    assert execution.of_stage("finetune").devices == 8


def test_a_study_scaled_down_for_a_drill_estimates_on_few_sequences() -> None:
    file = check_study(
        tiny_fields(
            **{"finetune.anchor": {"ewc": 1, "sequences": 64}, "grid": {"finetune.anchor.sequences": [64, 80]}}
        ),
        Path("tiny.yaml"),
    )
    short = scale_down(file)
    (estimate,) = estimates(expand(short, made_up_facts(short)))
    assert json.loads(estimate.recipe)["sequences"] == FISHER_SEQUENCES


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"finetune.anchor": {"ewc": 1}}, "finetune.anchor.ewc: the number of sequences to estimate the Fisher"),
        ({"finetune.anchor": {"sequences": 8}}, "finetune.anchor.sequences: only ewc estimates anything on sequences"),
        ({"finetune.anchor": {"ewc": -1, "sequences": 8}}, "finetune.anchor.ewc: "),
        ({"finetune.anchor": {"ewc": 1, "sequences": 0}}, "finetune.anchor.sequences: "),
        (
            {"finetune.anchor": {"ewc": 1, "sequences": 81}},
            "finetune.anchor.sequences: 81 sequences are more than the 80 that posttrain takes of corpus music; lower",
        ),
        ({"finetune.anchor": ANCHOR, "finetune.method": "lora"}, "anchor: ewc pulls all weights, and LoRA trains"),
        (
            {
                "stages": ["start", "finetune"],
                "start": SECTION | {"anchor": ANCHOR},
                "pretrain": None,
                "posttrain": None,
            },
            "start.anchor.ewc: the Fisher information is estimated on the corpus of the stage before, and start is the first",
        ),
        (
            {"stages": ["pretrain", "fisher", "posttrain", "finetune"], "fisher": SECTION},
            "fisher has another meaning in a study; give the stage another name",
        ),
    ],
)
def test_a_wrong_anchor_is_one_sentence_that_names_the_field_and_the_cure(fields: dict[str, Any], problem: str) -> None:
    whole = {name: part for name, part in tiny_fields(**{"grid": {}, **fields}).items() if part is not None}
    with pytest.raises(StudyError) as error:
        plan(whole)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
