"""The tree of stages: which trials and stages a study expands to, and which points are errors."""

import cProfile
import itertools
import pstats
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.data_facts import Reading
from retain.sweeps.tree.recipes.devices import device_mismatch
from retain.sweeps.tree.tree import Tree, axes_label, expand
from tests.studies import made_up_facts, tiny_fields, tiny_tree

AXES: dict[str, list[Any]] = {
    "pretrain.exposure": [0.0, 0.25, 0.5, 1.0],
    "pretrain.lr": [1e-3, 2e-3, 3e-3],
    "posttrain.lr": [1e-3, 2e-3],
    "posttrain.tokens": [640, 1280, 2560],
    "finetune.lr": [1e-4, 2e-4, 3e-4],
    "finetune.tokens": [2560, 5120],
    "seed": [0, 1],
}
GRIDS = st.dictionaries(st.sampled_from(list(AXES)), st.just(None), min_size=1, max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries(
        {axis: st.lists(st.sampled_from(AXES[axis]), min_size=1, unique=True) for axis in chosen}
    )
)


def stages_of(tree: Tree, kind: str) -> list[str]:
    return [key for key, stage in tree.stages.items() if stage.stage == kind]


@settings(max_examples=40)
@given(GRIDS)
def test_every_trial_is_a_path_of_the_tree_and_every_stage_is_on_a_path(grid: dict[str, list[Any]]) -> None:
    tree = tiny_tree(grid=grid)
    assert [trial.axes for trial in tree.trials] == [
        dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())
    ]
    for trial in tree.trials:
        assert [stage.key for stage in tree.ancestors(trial.key("finetune"))] == list(trial.path)
        assert [stage.stage for stage in tree.ancestors(trial.key("finetune"))] == ["pretrain", "posttrain", "finetune"]
    assert {key for trial in tree.trials for key in trial.path} == tree.stages.keys()


@settings(max_examples=40)
@given(GRIDS)
def test_parents_come_before_their_children(grid: dict[str, list[Any]]) -> None:
    seen: set[str] = set()
    for key, stage in tiny_tree(grid=grid).stages.items():
        assert stage.parent is None or stage.parent in seen
        seen.add(key)


@settings(max_examples=40)
@given(GRIDS, st.data())
def test_a_larger_grid_and_another_order_of_its_axes_keep_all_stages(grid: dict[str, Any], data: st.DataObject) -> None:
    smaller = {
        axis: data.draw(st.lists(st.sampled_from(values), min_size=1, unique=True)) for axis, values in grid.items()
    }
    order = data.draw(st.permutations(list(grid)))
    whole = tiny_tree(grid=grid).stages.keys()
    assert tiny_tree(grid=smaller).stages.keys() <= whole
    assert tiny_tree(grid={axis: grid[axis] for axis in order}).stages.keys() == whole


def test_axes_of_later_stages_add_no_earlier_stages() -> None:
    tree = tiny_tree(grid={axis: AXES[axis] for axis in ("pretrain.lr", "posttrain.lr", "finetune.lr")})
    assert [len(stages_of(tree, kind)) for kind in ("pretrain", "posttrain", "finetune")] == [3, 6, 18]
    assert len(tree.trials) == 18


@pytest.mark.parametrize(
    "axis",
    [{"posttrain.tokens": [640, 1280, 2560]}, {"posttrain.corpus": ["music", "chemistry"]}],
    ids=["size", "corpus"],
)
def test_pretraining_without_exposure_is_one_stage_for_every_d_post(axis: dict[str, list[Any]]) -> None:
    tree = tiny_tree(grid={"pretrain.exposure": [0], **axis})
    assert len(stages_of(tree, "pretrain")) == 1
    assert len(stages_of(tree, "posttrain")) == len(*axis.values())
    mixed = tiny_tree(grid={"pretrain.exposure": [1], **axis})
    assert len(stages_of(mixed, "pretrain")) == len(*axis.values())


def test_half_of_d_post_and_all_of_a_d_post_half_as_large_share_a_pretraining() -> None:
    half = tiny_tree(grid={"pretrain.exposure": [0.5]}, **{"posttrain.tokens": 2560})
    whole = tiny_tree(grid={"pretrain.exposure": [1]}, **{"posttrain.tokens": 1280})
    assert stages_of(half, "pretrain") == stages_of(whole, "pretrain")


def test_additive_and_matched_allocation_share_their_pretrainings() -> None:
    exposures = [0, 0.25, 0.5, 0.75, 1]
    tree = tiny_tree(grid={"pretrain.exposure": exposures, "allocation": ["additive", "matched"]})
    assert len(stages_of(tree, "pretrain")) == len(exposures)
    assert len(tree.trials) == 2 * len(exposures)


def test_matched_allocation_has_no_post_training_if_pretraining_takes_all_of_d_post() -> None:
    tree = tiny_tree(grid={"pretrain.exposure": [0.5, 1]}, allocation="matched")
    half, whole = tree.trials
    assert half.key("posttrain") is not None
    assert whole.key("posttrain") is None
    assert tree.stages[whole.leaf].parent == whole.key("pretrain")
    assert whole.path == (whole.key("pretrain"), whole.key("finetune"))


def test_a_tree_on_unprepared_data_is_provisional() -> None:
    file = check_study(tiny_fields(), Path("tiny.yaml"))
    assert expand(file, made_up_facts(file, None, None, "unprepared:")).provisional
    assert not expand(file, made_up_facts(file)).provisional


def test_a_stage_is_labelled_with_the_axes_that_lead_to_it() -> None:
    tree = tiny_tree(grid={"pretrain.exposure": [0, 1], "posttrain.tokens": [1280], "finetune.lr": [1e-4]})
    labels = [axes_label(tree.stages[key].axes) for key in tree.trials[1].path]
    assert labels == [
        "pretrain.exposure=1.0 posttrain.tokens=1280",
        "pretrain.exposure=1.0 posttrain.tokens=1280",
        "pretrain.exposure=1.0 posttrain.tokens=1280 finetune.lr=0.0001",
    ]
    assert axes_label(tree.stages[tree.trials[0].key("pretrain")].axes) == "pretrain.exposure=0.0"
    assert axes_label({}) == "-"


def test_a_whole_section_can_be_an_axis() -> None:
    pretrain = tiny_fields()["pretrain"]
    sections = [pretrain | {"exposure": exposure} for exposure in (0, 0.5)]
    whole = tiny_tree(grid={"pretrain": sections}, allocation="matched")
    fields = tiny_tree(grid={"pretrain.exposure": [0, 0.5]}, allocation="matched")
    assert whole.stages.keys() == fields.stages.keys()


def calls(trials: int) -> int:
    """The number of function calls that it takes to expand a grid of this many fine-tuning rates."""
    file = check_study(
        tiny_fields(grid={"finetune.lr": [1e-5 * number for number in range(1, trials + 1)]}), Path("a.yaml")
    )
    facts = made_up_facts(file)
    with cProfile.Profile() as profile:
        expand(file, facts)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_a_field_of_a_section_that_a_word_may_stand_for_can_be_an_axis() -> None:
    """A schedule is a word by default, and a mapping with wsd."""
    tree = tiny_tree(grid={"finetune.schedule.wsd": [0.5, 0.25]})
    whole = tiny_tree(grid={"finetune.schedule": [{"wsd": 0.5}, {"wsd": 0.25}]})
    assert list(tree.stages) == list(whole.stages)


def test_expanding_a_grid_takes_time_linear_in_its_trials() -> None:
    calls(1)
    assert calls(800) / calls(200) == pytest.approx(4, rel=0.05)


def test_shared_recipes_are_built_once() -> None:
    file = check_study(
        tiny_fields(grid={axis: AXES[axis] for axis in ("pretrain.lr", "posttrain.lr", "finetune.lr")}), Path("a")
    )
    with cProfile.Profile() as profile:
        expand(file, made_up_facts(file))
    made = {name[2]: counts[1] for name, counts in pstats.Stats(profile).stats.items()}  # type: ignore[attr-defined]
    assert (made["pretrain_recipe"], made["posttrain_recipe"], made["finetune_recipe"]) == (3, 2, 3)


def test_a_batch_that_cannot_be_split_over_the_devices_is_named() -> None:
    file = check_study(tiny_fields(execution={"devices": 3}, **{"pretrain.batch": 9}), Path("tiny.yaml"))
    cure = "; choose a batch that they divide, or other devices"
    assert (
        device_mismatch(file) == f"posttrain.batch: 8 sequences cannot be split evenly over execution.devices: 3{cure}"
    )
    in_grid = tiny_fields(execution={"devices": 4}, grid={"finetune.batch": [8, 6]})
    assert device_mismatch(check_study(in_grid, Path("tiny.yaml"))) == (
        f"finetune.batch: 6 sequences cannot be split evenly over execution.devices: 4{cure}"
    )
    section = tiny_fields()["finetune"]
    whole = {"finetune": [section, section | {"batch": 6}]}
    cases = {
        "size": {"small": {"finetune": section | {"batch": 12}, "finetune.batch": 6}, "large": {"finetune": section}}
    }
    for axes in ({"grid": whole}, {"grid": {}, "cases": cases}):
        fields = tiny_fields(execution={"devices": 4}, **axes)
        assert "finetune.batch: 6 sequences" in str(device_mismatch(check_study(fields, Path("tiny.yaml"))))
    assert device_mismatch(check_study(tiny_fields(execution={"devices": 4}), Path("tiny.yaml"))) is None


def test_no_device_is_left_without_a_pair_of_a_step() -> None:
    fields = tiny_fields(
        **{
            "corpora.pairs": {"files": "pairs.jsonl", "prompt": "{q}", "chosen": "{a}", "rejected": "{b}"},
            "finetune.corpus": "pairs",
            "finetune.objective": {"dpo": 0.1},
        }
    )
    assert device_mismatch(check_study(fields | {"execution": {"devices": 8}}, Path("tiny.yaml"))) == (
        "finetune.batch: 8 sequences have too few pairs for execution.devices: 8; choose a batch of at least 16, or fewer "
        "devices"
    )
    assert device_mismatch(check_study(fields | {"execution": {"devices": 4}}, Path("tiny.yaml"))) is None


def test_muon_with_split_matrices_is_named_in_any_stage_of_a_chain() -> None:
    chain = {
        "stages": ["pretrain", "decay"],
        "pretrain": tiny_fields()["pretrain"],
        "decay": {"corpus": "music", "tokens": 1280, "lr": 1e-3, "batch": 8, "optimizer": "muon"},
        "execution": {"devices": 2, "strategy": "fsdp"},
        "grid": {},
    }
    fields = {name: part for name, part in tiny_fields().items() if name not in ("posttrain", "finetune")}
    problem = device_mismatch(check_study(fields | chain, Path("tiny.yaml")))
    assert str(problem).startswith("decay.optimizer: muon takes whole matrices")
    assert str(problem).endswith("; write strategy: ddp, or optimizer: adamw")


@pytest.mark.parametrize(
    ("overrides", "facts", "sentence"),
    [
        (
            {},
            {"train": 20},
            "pretrain.tokens: 7,680 tokens exceed the training split of corpus general, which has 640; lower",
        ),
        (
            {},
            {"train": 2, "reading": Reading(3, 90, long=397)},
            "pretrain.tokens: 7,680 tokens exceed the training split of corpus general, which has 64; lower the budget, or "
            "enlarge the corpus (it has 3 documents; skipped 397 pairs longer than a sequence)",
        ),
        ({}, {"heldout": 0}, "corpora.general.heldout: the held-out split would be empty"),
        ({"finetune.tokens": 31}, {}, "finetune.tokens: 31 tokens are less than one sequence of 32"),
        ({"posttrain.max_tokens": 31}, {}, "posttrain.max_tokens: 31 tokens are less than one sequence of 32"),
        ({"finetune.warmup": 20}, {}, "finetune.warmup: 20 steps of warm-up do not fit the 20 steps of the stage"),
        ({"finetune.batch": 1000}, {}, "finetune.warmup: 2 steps of warm-up do not fit the 1 step of the stage"),
        ({"sequence_length": 65}, {}, "sequence_length: 65 exceeds the model's context of 64"),
        ({"model.vocabulary": 300}, {}, "model.vocabulary: 300 entries are too few for the tokeniser's 320"),
        (
            {"allocation": "matched", "posttrain.replay": 0.1},
            {},
            "posttrain.replay: matched allocation trains on each D_post",
        ),
        (
            {"pretrain.exposure": 1, "pretrain.passes": 2},
            {},
            "pretrain.passes: exposure is mixed into one pass over D_pre; set pretrain.passes: 1",
        ),
    ],
    ids=[
        "corpus too small",
        "most pairs too long",
        "no held-out",
        "tokens",
        "max_tokens",
        "warmup",
        "batch",
        "context",
        "vocabulary",
        "matched",
        "exposure in several passes",
    ],
)
def test_an_invalid_point_is_one_sentence_with_file_field_and_cure(
    overrides: dict[str, Any], facts: dict[str, Any], sentence: str
) -> None:
    file = check_study(tiny_fields(**{"grid": {}} | overrides), Path("tiny.yaml"))
    with pytest.raises(StudyError) as caught:
        expand(file, made_up_facts(file, **facts))
    assert str(caught.value).startswith(f"tiny.yaml: {sentence}")


@pytest.mark.parametrize(
    ("overrides", "train"),
    [
        ({}, 240),
        ({"finetune.mix": {"general": {"tokens": 3200, "skip": 32 * 400}}}, 500),
        ({"finetune.mix": {"general": {"tokens": 6400, "of": 3200, "skip": 32 * 400}}}, 500),
    ],
    ids=["a budget", "a component", "a component that repeats"],
)
def test_what_a_stage_reads_may_take_the_last_sequence_of_a_corpus_and_not_one_more(
    overrides: dict[str, Any], train: int
) -> None:
    file = check_study(tiny_fields(grid={}, **overrides), Path("tiny.yaml"))
    assert expand(file, made_up_facts(file, train=train)).stages
    with pytest.raises(StudyError, match="exceed the training split of corpus general"):
        expand(file, made_up_facts(file, train=train - 1))


def test_exposure_may_fill_its_window_and_not_more() -> None:
    fields: dict[str, Any] = {"grid": {}, "pretrain.exposure": 1, "posttrain.tokens": 32 * 80}
    window = tiny_tree(**fields, **{"pretrain.exposure_schedule": [0, 80 / 320]})
    assert '"window":[0,80]' in next(iter(window.stages.values())).recipe
    with pytest.raises(StudyError, match="leaves room for 79 sequences, but 80 are mixed in"):
        tiny_tree(**fields, **{"pretrain.exposure_schedule": [0, 79 / 320]})


@pytest.mark.parametrize(("share", "steps"), [(0.12, 2), (0.125, 3), (0.13, 3)])
def test_the_steps_of_a_decay_are_the_nearest_to_its_share(share: float, steps: int) -> None:
    tree = tiny_tree(grid={}, **{"finetune.schedule": {"wsd": share}})
    *_, finetune = tree.stages.values()
    assert '"steps":20,' in finetune.recipe
    assert f'"schedule":{{"wsd":{steps}}}' in finetune.recipe


def test_matched_allocation_without_pretraining_leaves_all_of_d_post_to_post_training() -> None:
    fields = {name: part for name, part in tiny_fields().items() if name != "pretrain"}
    chain = {"stages": ["posttrain", "finetune"], "allocation": "matched", "grid": {}}
    file = check_study(fields | chain | {"posttrain": fields["posttrain"] | {"max_tokens": None}}, Path("tiny.yaml"))
    first, *_ = expand(file, made_up_facts(file)).stages.values()
    assert (first.stage, first.tokens) == ("posttrain", 2560)


def test_matched_allocation_with_more_than_one_pass_is_an_error() -> None:
    with pytest.raises(StudyError, match="allocation: matched divides one pass over D_post"):
        tiny_tree(grid={"pretrain.exposure": [2]}, allocation="matched", **{"pretrain.repeat": True})


def test_a_pretraining_that_both_allocations_share_has_no_allocation_in_its_label() -> None:
    tree = tiny_tree(grid={"allocation": ["additive", "matched"], "pretrain.exposure": [0, 0.5]})
    pretrainings = [stage.axes for stage in tree.stages.values() if stage.stage == "pretrain"]
    assert pretrainings == [{"pretrain.exposure": 0.0}, {"pretrain.exposure": 0.5}]
