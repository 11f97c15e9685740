"""The `mix` of a stage in recipes and keys: exact amounts, one key for equal mixtures, and one sentence for wrong ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.order.mixtures import stage_order
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study, read_study
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import expand
from tests.datamodules.order.test_mixtures import everything
from tests.studies import made_up_facts, tiny_fields, tiny_study, tiny_tree

LENGTH = 32
BUDGETS = {"pretrain": 240, "posttrain": 160, "finetune": 160}
"""The sequences of each stage of the tiny study without a mixture, exposure included: there is none."""
PLAIN: dict[str, Any] = {"grid": {}}


def recipe_of(stage: str, **overrides: Any) -> dict[str, Any]:
    """The recipe of a stage of a study with one trial."""
    (found,) = (one for one in tiny_tree(**PLAIN | overrides).stages.values() if one.stage == stage)
    recipe: dict[str, Any] = json.loads(found.recipe)
    assert found.tokens == recipe["sequences"] * LENGTH
    return recipe


def mixed(mix: Any, stage: str = "finetune", **overrides: Any) -> dict[str, Any]:
    return recipe_of(stage, **{f"{stage}.mix": mix}, **overrides)


def keys(**overrides: Any) -> list[str]:
    return list(tiny_tree(**PLAIN | overrides).stages)


@pytest.mark.parametrize("stage", STAGE_KINDS)
def test_every_stage_takes_a_mixture_that_adds_to_its_tokens(stage: str) -> None:
    plain = recipe_of(stage)
    recipe = mixed({"chemistry": {"tokens": 20 * LENGTH}}, stage)
    part = {"corpus": "chemistry-32", "distinct": 20, "first": 0, "sequences": 20}
    assert recipe == plain | {"sequences": BUDGETS[stage] + 20, "steps": recipe["steps"], "mix": [part]}
    assert recipe["steps"] == -(-recipe["sequences"] // 8)


@pytest.mark.parametrize("stage", STAGE_KINDS)
def test_a_mixture_that_replaces_leaves_the_length_of_the_stage(stage: str) -> None:
    recipe = mixed({"chemistry": {"share": 0.25, "replaces": True}}, stage)
    assert recipe["sequences"] == BUDGETS[stage]
    (part,) = recipe["mix"]
    assert part["sequences"] == BUDGETS[stage] // 4
    sizes = {f"{name}-{LENGTH}": 1000 for name in ("general", "music", "chemistry")}
    order = stage_order(recipe, sizes)
    assert order.total == BUDGETS[stage]
    read = [corpus for corpus, _ in everything(order)]
    assert read.count(recipe["corpus"]) == BUDGETS[stage] - part["sequences"] or stage == "finetune"


@given(st.floats(0.005, 0.9), st.floats(0.001, 0.05), st.integers(0, 80))
def test_shares_are_those_of_all_sequences_of_the_stage(first: float, second: float, more: int) -> None:
    mix = {"music": {"share": first}, "general": [{"share": second, "replaces": True}, {"tokens": more * LENGTH}]}
    recipe = mixed(mix, **{"finetune.tokens": 1000 * LENGTH})
    counts = {part["corpus"]: part["sequences"] for part in recipe["mix"] if part["corpus"] == "music-32"}
    assert abs(counts["music-32"] - first * recipe["sequences"]) <= 1
    replaced = sum(part["sequences"] for part in recipe["mix"]) - counts["music-32"] - more
    assert abs(replaced - second * recipe["sequences"]) <= 1
    assert recipe["distinct"] == 1000 - replaced


WINDOWS = st.sampled_from([[0, 1], [0.0, 0.5], [0.5, 1.0], [0.25, 0.75]])
AMOUNTS = st.integers(1, 6).map(lambda count: count * 4)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A mixture, and the same mixture with other units, orders and defaults written out."""
    plain: dict[str, list[dict[str, Any]]] = {}
    for name in draw(st.lists(st.sampled_from(["music", "general"]), min_size=1, max_size=4)):
        amount = {"tokens": draw(AMOUNTS) * LENGTH, "window": draw(WINDOWS)}
        plain.setdefault(name, []).append(amount | ({"skip": 64 * LENGTH} if draw(st.booleans()) else {}))
    other: dict[str, Any] = {}
    for name in draw(st.permutations(list(plain))):
        listed = []
        for part in draw(st.permutations(plain[name])):
            ways = [
                {"tokens": part["tokens"] + draw(st.integers(0, LENGTH - 1))},
                {"passes": 1, "of": part["tokens"]},
                {"passes": 0.5, "of": 2 * part["tokens"]},
                {"tokens": part["tokens"], "of": 10 * part["tokens"]},
                {"tokens": f"{part['tokens']}", "skip": 0, "replaces": False},
            ]
            written = draw(st.sampled_from(ways)) | {"window": part["window"]}
            listed.append(written | ({"skip": part["skip"] + draw(st.integers(0, 31))} if "skip" in part else {}))
        listed.append({draw(st.sampled_from(["tokens", "share"])): 0, "window": [0.1, 0.2]})
        other[name] = listed[0] if len(listed) == 1 else listed
    return plain, other


@settings(max_examples=80)
@given(spellings(), st.sampled_from(STAGE_KINDS))
def test_equal_mixtures_written_in_another_order_or_unit_have_equal_keys(
    pair: tuple[dict[str, Any], dict[str, Any]], stage: str
) -> None:
    plain, other = pair
    assert keys(**{f"{stage}.mix": plain}) == keys(**{f"{stage}.mix": other})


@pytest.mark.parametrize(
    "other",
    [
        {"music": {"tokens": 11 * LENGTH}},
        {"general": {"tokens": 10 * LENGTH}},
        {"music": {"tokens": 10 * LENGTH, "skip": LENGTH}},
        {"music": {"tokens": 10 * LENGTH, "of": 5 * LENGTH}},
        {"music": {"tokens": 10 * LENGTH, "window": [0, 0.5]}},
        {"music": {"tokens": 10 * LENGTH, "replaces": True}},
        {"music": [{"tokens": 10 * LENGTH}, {"tokens": 10 * LENGTH, "skip": "1k"}]},
        {},
    ],
)
def test_a_mixture_that_reads_anything_else_has_another_key(other: dict[str, Any]) -> None:
    mixture = {"music": {"tokens": 10 * LENGTH}}
    before, after = keys(**{"finetune.mix": mixture}), keys(**{"finetune.mix": other})
    assert before[:2] == after[:2]
    assert before[2] != after[2]


@pytest.mark.parametrize(
    "nothing",
    [{}, {"music": {"share": 0}}, {"music": [{"tokens": 0}, {"passes": 0, "of": "1k", "window": [0.1, 0.2]}]}],
)
@pytest.mark.parametrize("stage", STAGE_KINDS)
def test_a_mixture_of_nothing_leaves_every_key(stage: str, nothing: dict[str, Any]) -> None:
    assert keys(**{f"{stage}.mix": nothing}) == keys()


def test_the_same_sequences_twice_are_two_passes() -> None:
    twice = {"music": [{"tokens": 320}, {"tokens": 320}]}
    assert mixed(twice) == mixed({"music": {"passes": 2, "of": 320}})


def test_the_shares_of_an_axis_are_trials_and_zero_is_the_stage_without_a_mixture() -> None:
    tree = tiny_tree(grid={"finetune.mix.music.share": [0, 0.01, 0.05]})
    assert [trial.axes["finetune.mix.music.share"] for trial in tree.trials] == [0, 0.01, 0.05]
    assert len({trial.key("posttrain") for trial in tree.trials}) == 1
    assert len({trial.leaf for trial in tree.trials}) == 3
    assert tree.trials[0].leaf == tiny_tree(grid={}).trials[0].leaf


@pytest.mark.parametrize(
    ("fields", "overrides"),
    [
        ({"grid": {"finetune.mix.law.share": [0, 0.1]}}, []),
        ({"cases": {"mixed": {"yes": {"finetune.mix.law.tokens": 320}, "no": {"finetune.mix.law.tokens": 0}}}}, []),
        ({}, ["finetune.mix.law.share=[0,0.1]"]),
        ({"search": {"axes": {"finetune.mix.law.share": {"uniform": [0, 0.1]}}}}, []),
    ],
    ids=["grid", "cases", "override", "search"],
)
def test_a_corpus_that_only_the_path_of_an_axis_names_is_used(
    fields: dict[str, Any], overrides: list[str], tmp_path: Path
) -> None:
    law = {"corpora.law": {"files": "music.jsonl"}, "grid": {"finetune.lr": [1e-3, 2e-3]}}
    file = read_study(str(tiny_study(tmp_path, **(law | fields))), overrides)
    assert "law" in file.study.corpora
    assert len(expand(file, made_up_facts(file)).trials) > 1


def test_an_amount_of_zero_is_no_mixture_where_one_would_be_refused() -> None:
    """So an axis over a mixture may have a case whose stage cannot have one."""
    none = {"music": {"share": 0}, "general": [{"tokens": 0}, {"passes": 0, "of": 320}]}
    matched: dict[str, Any] = {"allocation": "matched", "posttrain.max_tokens": None, "grid": {}}
    assert list(tiny_tree(**matched, **{"posttrain.mix": none}).stages) == list(tiny_tree(**matched).stages)


def test_windows_components_and_whole_mixtures_can_be_axes_and_cases(tmp_path: Path) -> None:
    base = {"finetune.mix": {"music": {"tokens": 320}}}
    windows = tiny_tree(**base, grid={"finetune.mix.music.window": [[0, 0.5], [0.5, 1]]})
    assert len({trial.leaf for trial in windows.trials}) == 2
    lists = {"one": {"finetune.mix.music": [{"share": 0.1}, {"tokens": 64}]}, "none": {"finetune.mix": {}}}
    assert len({trial.leaf for trial in tiny_tree(**PLAIN, cases={"mixture": lists}).trials}) == 2
    study = str(tiny_study(tmp_path, **base))
    one = read_study(study, ["finetune.mix.music=[{share: 0.1}, {tokens: 64}]"])
    assert "finetune.mix.music" not in one.axes
    several = read_study(study, ["finetune.mix.music={share: 0.5}", "finetune.mix.music.share=[0, 0.1]"])
    assert several.axes["finetune.mix.music.share"] == [0, 0.1]


def test_the_axes_of_a_mixture_are_plain_values_in_tables_and_json() -> None:
    choices = [{}, {"music": {"share": 0.5}}, {"music": [{"tokens": "64"}, {"share": 0.1, "window": [0, 0.5]}]}]
    tree = tiny_tree(grid={"finetune.mix": choices})
    shown = json.loads(json.dumps([trial.axes["finetune.mix"] for trial in tree.trials]))
    assert shown == [{}, choices[1], {"music": [{"tokens": 64}, {"share": 0.1, "window": [0.0, 0.5]}]}]


def test_exposure_and_a_mixture_share_a_stage_and_its_window_is_of_the_whole_stage() -> None:
    recipe = mixed(
        {"chemistry": {"tokens": 160 * LENGTH, "window": [0, 0.5]}},
        "pretrain",
        **{"pretrain.exposure": 1, "pretrain.exposure_schedule": "late"},
    )
    assert recipe["sequences"] == 240 + 80 + 160
    assert recipe["exposure"] == {"corpus": "music-32", "distinct": 80, "sequences": 80, "window": [240, 480]}
    assert recipe["mix"][0]["window"] == [0, 240]


@pytest.mark.parametrize(
    "grid", [{"pretrain.mix.music.tokens": [0, 640]}, {"pretrain.mix": [{}, {"music": {"tokens": 64}}]}]
)
def test_matched_allocation_refuses_d_post_in_a_mixture_that_an_axis_sets(grid: dict[str, Any]) -> None:
    with pytest.raises(StudyError, match=r"pretrain\.mix\.music: matched allocation trains on each D_post token once"):
        tiny_tree(allocation="matched", grid=grid, **{"posttrain.max_tokens": None})


def test_matched_allocation_takes_a_mixture_of_another_corpus() -> None:
    once = {"allocation": "matched", "posttrain.max_tokens": None, "pretrain.exposure": 0.25}
    recipe = mixed({"chemistry": {"tokens": 320}}, "posttrain", **once)
    assert (recipe["first"], recipe["distinct"], recipe["sequences"]) == (20, 60, 70)


@pytest.mark.parametrize(
    ("replay", "late"), [(replay, late) for replay in (0, 0.25, 0.5, 0.75) for late in (1, 0.5, 0.25, 0.125)]
)
def test_the_two_phases_of_kotha_and_liang_can_be_written_in_a_study(replay: float, late: float) -> None:
    # Of 1,024 steps of 8 sequences, 8 passes over 1/128 are rare; phase 2 lasts d = g·a / (1 - r) of the run.
    total, distinct, passes = 8192, 64, 8
    share = distinct * passes / total * late / (1 - replay)
    rare = {"of": distinct * LENGTH, "replaces": True}
    mix = [
        rare | {"passes": passes * (1 - late), "window": [0, 1 - share]},
        rare | {"passes": passes * late, "window": [1 - share, 1]},
    ]
    recipe = mixed({"music": mix}, "pretrain", **{"pretrain.tokens": total * LENGTH})
    order = stage_order(recipe, {"general-32": total, "music-32": distinct})
    read = everything(order)
    begin = round((1 - share) * total)
    second = [corpus for corpus, _ in read[begin:]]
    assert second.count("music-32") == distinct * passes * late
    assert abs(second.count("general-32") - replay * share * total) <= 0.5
    assert [corpus for corpus, _ in read[:begin]].count("music-32") == distinct * passes * (1 - late)
    assert len(read) == total


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown corpus": (
        {"finetune.mix": {"musik": {"share": 0.1}}},
        r"finetune\.mix: unknown corpus 'musik'; the corpora are general, music, chemistry",
    ),
    "amount given twice": (
        {"posttrain.mix": {"general": [{"tokens": 64}, {"tokens": 64, "share": 0.1}]}},
        r"posttrain\.mix\.general\.1: tokens and share both give the amount; write one of tokens, passes and share",
    ),
    "no amount": (
        {"pretrain.mix": {"music": {"window": [0, 0.5]}}},
        r"pretrain\.mix\.music: the amount is missing; write one of tokens, passes and share",
    ),
    "passes over an unknown budget": (
        {"finetune.mix": {"music": {"passes": 3}}},
        r"finetune\.mix\.music\.passes: passes need the size of one pass; add of",
    ),
    "window too small": (
        {"finetune.mix": {"music": {"tokens": 320, "window": [0.9, 0.95]}}},
        r"finetune\.mix\.music\.window: \[0\.9, 0\.95\] has room for 9 of the stage's 170 sequences, but 10 sequences must fit",
    ),
    "window of nothing": (
        {"finetune.mix": {"music": {"tokens": 32, "window": [0.999, 1]}}},
        r"finetune\.mix\.music\.window: \[0\.999, 1\] rounds to nothing, but 1 sequence must fit; widen the window",
    ),
    "windows too small together": (
        {
            "finetune.mix": {
                "music": {"share": 0.5, "window": [0, 0.5], "replaces": True},
                "general": {"tokens": 320, "window": [0, 0.25], "replaces": True},
            }
        },
        r"finetune\.mix: 90 sequences are confined to positions 0 to 80 of the stage's 160, which have room for 80; widen",
    ),
    "windows of post-training too small together": (
        {"posttrain.mix": {"general": [{"tokens": 32 * count, "window": [0, 0.5]} for count in (100, 90)]}},
        r"posttrain\.mix: 190 sequences are confined to positions 0 to 175 of the stage's 350, which have room for 175; widen",
    ),
    "windows too small for exposure too": (
        {
            "pretrain.exposure": 1,
            "pretrain.exposure_schedule": [0.0, 0.3],
            "pretrain.mix": {"chemistry": {"tokens": 3200, "window": [0, 0.3]}},
        },
        r"pretrain\.mix: 180 sequences are confined to positions 0 to 126 of the stage's 420, which have room for 126",
    ),
    "nothing left of the stage's own corpus": (
        {"finetune.mix": {"music": {"tokens": 5120, "replaces": True}}},
        r"finetune\.mix: 160 sequences are to replace sequences of chemistry, but the stage has 160 of them and must keep",
    ),
    "shares of everything": (
        {"finetune.mix": {"music": {"share": 0.5}, "general": {"share": 0.5}}},
        r"finetune\.mix: the shares that are added sum to 1 of the stage and leave nothing for chemistry; lower them",
    ),
    "amount that rounds to nothing": (
        {"finetune.mix": {"music": {"share": 1e-5}}},
        r"finetune\.mix\.music\.share: 1e-05 rounds to zero sequences; raise it, or set it to 0 for none",
    ),
    "less than a sequence": (
        {"finetune.mix": {"music": {"tokens": 31}}},
        r"finetune\.mix\.music\.tokens: 31 rounds to zero sequences",
    ),
    "budget of less than a sequence": (
        {"finetune.mix": {"music": {"share": 0.1, "of": 31}}},
        r"finetune\.mix\.music\.of: 31 tokens are less than one sequence of 32; raise it",
    ),
    "D_post twice in matched allocation": (
        {"allocation": "matched", "posttrain.max_tokens": None, "pretrain.mix": {"music": {"tokens": 64}}},
        r"pretrain\.mix\.music: matched allocation trains on each D_post token once; remove music from mix",
    ),
    "D_post replaced in matched allocation": (
        {
            "allocation": "matched",
            "posttrain.max_tokens": None,
            "posttrain.mix": {"general": {"tokens": 64, "replaces": True}},
        },
        r"posttrain\.mix\.general\.replaces: matched allocation trains on each D_post token once; remove replaces",
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_mixture_that_does_not_fit_is_refused_with_field_numbers_and_cure(wrong: str) -> None:
    overrides, sentence = REFUSED[wrong]
    with pytest.raises(StudyError, match=rf"tiny\.yaml: {sentence}"):
        tiny_tree(**PLAIN | overrides)


def test_a_mixture_that_exceeds_its_corpus_is_refused_with_the_size_of_the_corpus() -> None:
    file = check_study(
        tiny_fields(**PLAIN, **{"finetune.mix": {"music": {"tokens": 3200, "skip": 4992}}}), Path("tiny.yaml")
    )
    with pytest.raises(
        StudyError,
        match=r"finetune\.mix\.music: 3,200 distinct tokens after the 4,992 that are skipped exceed the training split of "
        r"corpus music, which has 8,000; lower the amount, repeat fewer tokens with of, or enlarge the corpus",
    ):
        expand(file, made_up_facts(file, train=250))
    assert expand(file, made_up_facts(file, train=256)).stages


def test_a_drill_scales_mixtures_down_with_their_stages() -> None:
    mix = {
        "music": [{"tokens": "150M", "window": [0.5, 1]}, {"passes": 8, "of": "10M", "skip": "200M"}],
        "chemistry": {"share": 1e-5},
    }
    file = check_study(
        tiny_fields(**{"pretrain.tokens": "1B", "pretrain.mix": mix, "grid": {"pretrain.mix.general.share": [0, 0.1]}}),
        Path("tiny.yaml"),
    )
    cut = scale_down(file)
    tree = expand(cut, made_up_facts(cut, train=500))
    recipes = [json.loads(stage.recipe) for stage in tree.stages.values() if stage.stage == "pretrain"]
    assert [len(recipe["mix"]) for recipe in recipes] == [3, 4]
    assert all(recipe["sequences"] < 40 * 8 * 2.2 for recipe in recipes)
