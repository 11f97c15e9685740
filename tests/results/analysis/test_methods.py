"""The method, the setting and the pipeline of a row of the loss table, and the points of each seed."""

import itertools
import math
from typing import Any

import pytest

from retain.results.analysis.loss_planes import LossPlane, points_by_seed
from retain.results.analysis.methods import METHODS, method_of, pipeline_of, setting_axes, with_fixed, with_pipelines
from retain.results.claims.verdicts import verdicts
from retain.results.figures.catalogue import FIGURES, FRONTIERS
from retain.results.figures.series import panels
from retain.results.report.headline import kept_groups, run_names
from retain.sweeps.schema.section import LOSSES


def row(axes: dict[str, Any], **losses: float | None) -> dict[str, Any]:
    return {"axes": axes, "keys": {}, **dict.fromkeys(LOSSES), **losses, "tokens": None}


@pytest.mark.parametrize(
    ("axes", "method"),
    [
        ({"method": "mixed+dropout", "posttrain.dropout": 0.02}, "mixed+dropout"),
        ({}, "unmixed"),
        ({"pretrain.exposure": 0}, "unmixed"),
        ({"pretrain.exposure": 0.25}, "mixed"),
        ({"pretrain.exposure": 1, "posttrain.dropout": 0.0, "posttrain.replay": 0.01}, "mixed+replay"),
        ({"pretrain.exposure": 0, "posttrain.dropout": 0.05}, "unmixed+dropout"),
        ({"pretrain.exposure": 1, "posttrain.method": "lora"}, "mixed+lora"),
        ({"pretrain.exposure": 1, "posttrain.method": "full"}, "mixed"),
    ],
)
def test_the_method_is_the_axis_method_or_follows_from_the_axes_of_its_fields(
    axes: dict[str, Any], method: str
) -> None:
    assert method_of(row(axes)) == method
    assert method in METHODS


def test_the_pipeline_is_the_axis_pipeline() -> None:
    assert pipeline_of(row({"pipeline": "music-chemistry"})) == "music-chemistry"
    assert pipeline_of(row({})) is None


def test_points_are_the_finished_trials_of_each_seed() -> None:
    rows = [
        row({"seed": 1}, retained_posttraining_loss=2.0, finetuning_loss=3.0),
        row({"seed": 0}, retained_posttraining_loss=1.0, finetuning_loss=4.0),
        row({"seed": 1}, retained_posttraining_loss=1.5, finetuning_loss=3.5),
        row({"seed": 1}, retained_posttraining_loss=1.5),
        row({"seed": 2}, retained_posttraining_loss=1.5, finetuning_loss=math.nan),
    ]
    points = points_by_seed(rows, LossPlane("retained_posttraining_loss", "finetuning_loss"))
    assert {seed: found.tolist() for seed, found in points.items()} == {0: [[1, 4]], 1: [[2, 3], [1.5, 3.5]]}


def test_fixed_fields_decide_the_method_where_no_axis_does() -> None:
    fixed = {"pretrain.exposure": 1, "posttrain.dropout": 0.05, "posttrain.method": "full"}
    made = with_fixed([row({}), row({"pretrain.exposure": 0}), row({"method": "unmixed"})], fixed)
    assert [method_of(each) for each in made] == ["mixed+dropout", "unmixed+dropout", "unmixed"]


def trials(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A finished trial for each combination of the values."""
    return [
        row(dict(zip(axes, values, strict=True)), **dict.fromkeys(LOSSES, 2.0 + 0.1 * number))
        for number, values in enumerate(itertools.product(*axes.values()))
    ]


@pytest.mark.parametrize(
    ("axis", "values", "names"),
    [
        ("finetune.mix.chat.share", [0, 0.01], ["finetune.mix.chat.share = 0", "finetune.mix.chat.share = 0.01"]),
        (
            "midtrain.mix.music.tokens",
            [0, 50_000],
            ["midtrain.mix.music.tokens = 0", "midtrain.mix.music.tokens = 50k"],
        ),
        (
            "pretrain.schedule",
            ["cosine", {"wsd": 0.1}],
            ["pretrain.schedule = cosine", "pretrain.schedule = {wsd: 0.1}"],
        ),
        (
            "midtrain.start",
            [None, {"optimizer": "carry"}],
            ["midtrain.start = none", "midtrain.start = {optimizer: carry}"],
        ),
        ("posttrain.passes", [1, 2], ["posttrain.passes = 1", "posttrain.passes = 2"]),
        ("posttrain.batch", [8, 32], ["posttrain.batch = 8", "posttrain.batch = 32"]),
        ("model.hf", ["EleutherAI/pythia-70m", "./mine"], ["model.hf = EleutherAI/pythia-70m", "model.hf = ./mine"]),
        ("pretrain.exposure", [0, 1], ["λ = 0", "λ = 1"]),
        ("when", ["early", "late"], ["when = early", "when = late"]),
        ("method", ["unmixed", "mixed"], ["unmixed", "mixed"]),
    ],
)
def test_frontiers_first_screen_and_curves_tell_the_same_settings_apart_by_the_same_names(
    axis: str, values: list[Any], names: list[str]
) -> None:
    """Rates and seeds are what a line is swept over; any other axis that varies is a setting."""
    rows = trials({axis: values, "posttrain.lr": [1e-3, 2e-3], "finetune.lr": [1e-4, 5e-4], "seed": [0, 1]})
    for number, one in enumerate(rows):
        one["keys"] = {"pretrain": None, "posttrain": None, "finetune": f"run {number}"}
    assert [line.name for line in panels(FRONTIERS, rows)[0][0].series] == names
    (group,) = kept_groups(rows)
    assert [line.name for line in group.rows] == names
    assert list(dict.fromkeys(run_names(rows).values())) == names


def test_trials_on_different_corpora_are_pipelines_and_not_lines_of_one_panel() -> None:
    rows = trials({"posttrain.corpus": ["music", "code"], "finetune.corpus": ["law"], "pretrain.exposure": [0, 1]})
    assert list(dict.fromkeys(map(pipeline_of, rows))) == ["D_post music, D_ft law", "D_post code, D_ft law"]
    titles = [panel.title for panel_row in panels(FRONTIERS, rows) for panel in panel_row[:1]]
    assert titles == ["(a) D_post music, D_ft law", "(b) D_post code, D_ft law"]
    groups = kept_groups(rows)
    assert [group.subject for group in groups] == ["D_post music, D_ft law", "D_post code, D_ft law"]
    assert {line.name for group in groups for line in group.rows} == {"λ = 0", "λ = 1"}


def test_a_run_that_trials_share_is_named_by_what_they_agree_on() -> None:
    rows = trials({"size": ["1M", "2M"], "finetune.tokens": [12_800, 25_600], "seed": [0]})
    for number, one in enumerate(rows):
        one["keys"] = {"pretrain": f"of {one['axes']['size']}", "posttrain": None, "finetune": f"run {number}"}
    names = run_names(rows)
    assert (names["of 1M"], names["of 2M"]) == ("size = 1M", "size = 2M")
    assert names["run 1"] == "size = 1M, finetune.tokens = 25.6k"


def test_a_run_that_only_some_lines_share_is_not_named_all_trials() -> None:
    rows = trials({"recipe": ["frontier-0", "frontier-1", "default"]})
    for one in rows:
        recipe = one["axes"]["recipe"]
        first = "alone" if recipe == "default" else "shared"
        one["keys"] = {"pretrain": first, "posttrain": "of all", "finetune": recipe}
    names = run_names(rows)
    assert (names["shared"], names["alone"], names["of all"]) == ("several", "default", "all trials")


def test_a_named_method_is_one_line_over_the_lists_of_its_cases_but_not_over_another_axis() -> None:
    """As in the paper's figures, which sweep rates, batches, and dropout within its case."""
    rows = [
        *trials({"method": ["mixed"], "posttrain.batch": [8, 32], "finetune.lr": [1e-4, 5e-4]}),
        *trials({"method": ["mixed+dropout"], "posttrain.dropout": [0.02, 0.05], "posttrain.batch": [8, 32]}),
    ]
    assert setting_axes(rows) == ["method"]
    apart = [one | {"axes": {**one["axes"], "finetune.passes": passes}} for one in rows for passes in (1, 2)]
    assert setting_axes(apart) == ["method", "finetune.passes"]
    drawn = panels(FIGURES["figure4"], apart)[0][0].series
    assert [line.name for line in drawn] == [
        f"{method}, finetune.passes = {passes}" for method in ("mixed", "mixed+dropout") for passes in (1, 2)
    ]


def test_the_points_of_a_search_are_one_line() -> None:
    rows = [
        row({"point": f"p{number}", "pretrain.exposure": number / 7, "posttrain.dropout": 0.01 * number})
        for number in range(3)
    ]
    assert setting_axes(rows) == []


def test_learning_rates_seeds_and_averages_of_weights_are_points_of_a_line() -> None:
    rows = trials(
        {"seed": [0, 1], "finetune.lr": [1e-4, 5e-4], "finetune.average": [0.5, 1], "finetune.anchor.l2sp": [0, 1]}
    )
    assert setting_axes(rows) == ["finetune.anchor.l2sp"]


def test_an_axis_of_cases_that_chooses_corpora_tells_pipelines_apart_whatever_its_name() -> None:
    rows = trials({"data": ["a", "b"], "when": ["early", "late"], "pretrain.exposure": [0, 1], "finetune.lr": [1, 2]})
    for one in rows:
        one["corpora"] = {"pretraining": "web", "posttraining": one["axes"]["data"] * 2, "finetuning": "law"}
    named = with_pipelines(rows)
    assert [one["axes"]["pipeline"] for one in named] == [one["axes"]["data"] for one in rows]
    assert "data" not in setting_axes(named)
    assert "when" in setting_axes(named)
    assert [group.subject for group in kept_groups(rows)] == ["a", "b"]
    assert {verdict.statement.subject.partition(",")[0] for verdict in verdicts(named) if verdict.claim == "3"} == {
        "a",
        "b",
    }
    assert with_pipelines(named) == named


def test_an_axis_whose_cases_share_their_corpora_tells_no_pipelines_apart() -> None:
    rows = trials({"data": ["a", "b"], "finetune.corpus": ["law", "code"], "seed": [0, 1]})
    for one in rows:
        one["corpora"] = {"pretraining": one["axes"]["data"], "posttraining": "music"}
        one["corpora"]["finetuning"] = one["axes"]["finetune.corpus"]
    assert with_pipelines(rows) == rows
