"""Cases: axes whose values set several fields at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import Tree, expand
from tests.studies import made_up_facts, tiny_study

PIPELINES = {
    "music-chemistry": {"posttrain.corpus": "music", "finetune.corpus": "chemistry"},
    "chemistry-music": {"posttrain.corpus": "chemistry", "finetune.corpus": "music"},
}
METHODS = {
    "unmixed": {"pretrain.exposure": 0},
    "mixed": {"pretrain.exposure": 1},
    "mixed+dropout": {"pretrain.exposure": 1, "posttrain.dropout": [0.02, 0.05]},
}


def tree_of(folder: Path, *overrides: str, **fields: Any) -> Tree:
    given: dict[str, Any] = {
        "cases": {"pipeline": PIPELINES, "method": METHODS},
        "grid": {"finetune.lr": [5e-4, 2e-3]},
    }
    file = read_study(str(tiny_study(folder, **(given | fields))), overrides)
    return expand(file, made_up_facts(file))


def test_trials_combine_one_case_of_each_axis_with_every_point_of_the_lists_in_it(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    assert len(tree.trials) == 2 * 4 * 2
    assert tree.trials[0].axes == {"pipeline": "music-chemistry", "method": "unmixed", "finetune.lr": 5e-4}
    dropouts = [trial.axes.get("posttrain.dropout") for trial in tree.trials if trial.axes["method"] == "mixed+dropout"]
    assert sorted(set(dropouts)) == [0.02, 0.05]


def test_cases_share_equal_stages_which_are_labelled_by_fields_and_not_by_a_case(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    kinds = [stage.stage for stage in tree.stages.values()]
    assert kinds.count("pretrain") == 3  # One without exposure, and one exposed to each corpus.
    assert kinds.count("posttrain") == 2 * 4
    assert all("method" not in stage.axes and "pipeline" not in stage.axes for stage in tree.stages.values())
    mixed = next(trial for trial in tree.trials if trial.axes["method"] == "mixed+dropout")
    assert tree.stages[mixed.key("pretrain")].axes == {"posttrain.corpus": "music", "pretrain.exposure": 1}


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        (
            {"grid": {"finetune": {"lr": [5e-4, 2e-3]}}},
            "tiny.yaml: grid.finetune: finetune stands for the whole section, which lacks corpus; add it, or set single "
            "fields by their paths, as in finetune.lr",
        ),
        (
            {"cases": {"stop": {"early": {"posttrain.early_stopping": {"every": 2}}}}},
            "tiny.yaml: cases.stop.early: posttrain.early_stopping stands for the whole section, which lacks patience; add "
            "it, or set single fields by their paths, as in posttrain.early_stopping.every",
        ),
    ],
    ids=["grid", "cases"],
)
def test_nested_fields_of_an_axis_are_told_from_a_whole_section(
    axes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError) as refused:
        read_study(str(tiny_study(tmp_path, **axes)))
    assert str(refused.value) == sentence


def test_a_field_of_a_case_that_a_section_after_it_would_replace_is_an_error(tmp_path: Path) -> None:
    section = {"corpus": "chemistry", "tokens": 5120, "lr": 1e-3, "batch": 8}
    lost = {"finetune.lr": 5e-4, "finetune": section}
    sentence = r"cases\.size\.a: finetune replaces finetune\.lr, which is set before it; write finetune first"
    with pytest.raises(StudyError, match=sentence):
        tree_of(tmp_path, cases={"size": {"a": lost}}, grid={})
    kept = tree_of(tmp_path, cases={"size": {"a": dict(reversed(lost.items()))}}, grid={})
    assert json.loads(kept.stages[kept.trials[0].leaf].recipe)["lr"] == 5e-4


def test_an_override_selects_cases_by_name(tmp_path: Path) -> None:
    assert len(tree_of(tmp_path, "method=mixed", "pipeline=[chemistry-music]").trials) == 2
    with pytest.raises(StudyError, match=r"unknown case mxed; the cases are unmixed, mixed, mixed\+dropout"):
        tree_of(tmp_path, "method=mxed")
    with pytest.raises(StudyError, match=r"'method=\[\]': name at least one case; the cases are unmixed, mixed,"):
        tree_of(tmp_path, "method=[]")


def test_an_override_that_every_case_overrules_is_refused_and_not_ignored(tmp_path: Path) -> None:
    cure = r"change a case, as in 'cases\.method\.unmixed=\{pretrain\.exposure: VALUE\}'"
    refused = rf"'pretrain\.exposure=0\.5': every case of method sets pretrain\.exposure, .*; {cure}"
    for overrides in (["pretrain.exposure=0.5"], ["method=mixed", "pretrain.exposure=0.5"]):
        with pytest.raises(StudyError, match="every case of method sets"):
            tree_of(tmp_path, *overrides)
    with pytest.raises(StudyError, match=refused):
        tree_of(tmp_path, "pretrain.exposure=0.5")
    changed = tree_of(tmp_path, "cases.method.mixed={pretrain.exposure: 0.5}")
    assert 0.5 in {stage.axes.get("pretrain.exposure") for stage in changed.stages.values()}
    # One case leaves this field to the study, and so to the override.
    study = tiny_study(tmp_path, cases={"method": METHODS}, grid={})
    assert set(read_study(str(study), ["posttrain.dropout=0.1"]).values("posttrain.dropout")) == {0.1, 0.02, 0.05}


def test_cases_and_grid_axes_with_the_same_values_give_the_same_stages(tmp_path: Path) -> None:
    by_case = tree_of(tmp_path / "cases", cases={"method": {name: METHODS[name] for name in ("unmixed", "mixed")}})
    by_grid = tree_of(tmp_path / "grid", cases={}, grid={"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]})
    assert by_case.stages.keys() == by_grid.stages.keys()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"grid": {"pretrain.exposure": [0, 1]}}, "pretrain.exposure is set by cases.method and by grid"),
        ({"cases": {"method": {"a": {"pretrain.exposure": [0, 0]}}}}, "cases.method.a.pretrain.exposure: 0 is listed"),
        ({"cases": {"method": {"a": {"pretrain.exposre": 0}}}}, "did you mean exposure"),
        ({"cases": {"method": {"a": {"pretrain.exposure": 7}}}}, "more than one pass"),
        ({"cases": {"method": {"a": {"corpora.music": 0}}}}, "corpora cannot be an axis"),
        ({"cases": {"method": {"a": {}}}}, "a case must map fields to values"),
        ({"cases": {"method": {}}}, "at least one case"),
        ({"cases": {"tokens": {"few": {"finetune.tokens": 640}}}}, "results have a column tokens of their own"),
        ({"cases": {"seed": {"first": {"seed": 0}}}}, "cases.seed.first: the values of seed are whole numbers"),
        ({"cases": {"size": {"a": {"model": "laptop"}}}, "grid": {"model.layers": [2]}},
         "model.layers is set by cases.size and by grid.model.layers"),
    ],
)  # fmt: skip
def test_an_invalid_case_is_one_sentence_that_names_its_place(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudyError) as caught:
        tree_of(tmp_path, **fields)
    assert sentence in str(caught.value)


def test_cases_with_numbers_can_tie_a_seed_to_a_subset(tmp_path: Path) -> None:
    repeated = {str(number): {"seed": number, "subset_seed": number} for number in range(2)}
    tree = tree_of(tmp_path, cases={"seed": repeated}, grid={})
    assert [trial.axes for trial in tree.trials] == [{"seed": "0"}, {"seed": "1"}]
    assert len(tree.stages) == 6


def test_a_scaled_down_study_keeps_the_first_and_the_last_case(tmp_path: Path) -> None:
    path = tiny_study(tmp_path, cases={"pipeline": PIPELINES, "method": METHODS}, grid={"seed": [0, 1, 2]})
    small = scale_down(read_study(str(path)))
    assert [option.labels for option in small.cases["method"]] == [{"method": "unmixed"}, {"method": "mixed+dropout"}]
    assert len(expand(small, made_up_facts(small)).trials) == 2 * 2 * 2


def test_a_case_may_set_single_fields_of_a_section_that_the_study_leaves_out(tmp_path: Path) -> None:
    stopping = {"posttrain.early_stopping.every": 5, "posttrain.early_stopping.patience": 2}
    tree = tree_of(tmp_path, cases={"stopping": {"on": stopping, "off": {"posttrain.replay": 0}}}, grid={})
    file = read_study(str(tiny_study(tmp_path, cases={"stopping": {"on": stopping, "off": {"posttrain.replay": 0}}})))
    assert file.values("posttrain.early_stopping.every") == [5, None]
    assert '"early_stopping":{"every":5,"patience":2}' in tree.stages[str(tree.trials[0].key("posttrain"))].recipe


def test_a_scaled_down_study_takes_no_more_of_a_corpus_than_the_study(tmp_path: Path) -> None:
    fields = {"pretrain.tokens": 2560, "pretrain.passes": 3, "posttrain.tokens": 1280, "finetune.tokens": 2560}
    file = read_study(str(tiny_study(tmp_path, grid={}, **fields)))
    small = scale_down(file)
    tree = expand(small, made_up_facts(small, train=80))
    sequences = {stage.stage: json.loads(stage.recipe)["sequences"] for stage in tree.stages.values()}
    # Repeated stages stay as long as a drill needs them, in more passes.
    assert sequences == {"pretrain": 40 * 8, "posttrain": 60 * 8, "finetune": 10 * 8}


@pytest.mark.parametrize("share", [0.001, 0.95])
def test_a_scaled_down_study_can_decay_and_warm_up_in_its_short_stages(share: float, tmp_path: Path) -> None:
    path = tiny_study(
        tmp_path,
        grid={"finetune.schedule": ["linear", {"wsd": share}]},
        **{
            "pretrain.schedule": {"wsd": share},
            "pretrain.tokens": "1M",
            "finetune.tokens": "1M",
            "pretrain.warmup": 20,
        },
    )
    small = scale_down(read_study(str(path)))
    kinds = [stage.stage for stage in expand(small, made_up_facts(small)).stages.values()]
    assert sorted(kinds) == ["finetune", "finetune", "posttrain", "pretrain"]
