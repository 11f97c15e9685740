"""The method and the pipeline of a row of the loss table, and the points of each seed."""

import math
from typing import Any

import pytest

from retain.results.analysis.loss_planes import LossPlane, points_by_seed
from retain.results.analysis.methods import METHODS, method_of, pipeline_of, with_fixed
from retain.results.store.loss_table import LOSSES


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
