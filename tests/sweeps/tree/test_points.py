"""Which points of a grid are valid: their values are checked together, and an invalid point is named."""

from typing import Any

import pytest

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema import axes
from retain.sweeps.schema.validation_messages import validate
from tests.studies import tiny_fields, tiny_tree

WIDTHS = {"model.hidden": [24, 48], "model.kv_heads": [3]}
"""Invalid with the heads of the tiny model."""


def test_the_error_of_an_invalid_point_names_its_place_in_the_grid() -> None:
    with pytest.raises(StudyError, match=r"finetune\.tokens: 16 tokens are less .* \(at finetune\.tokens=16\)"):
        tiny_tree(grid={"pretrain.exposure": [0, 1], "finetune.tokens": [5120, 16]})
    with pytest.raises(StudyError, match=r"\(at finetune\.schedule={wsd: 0\.01}\)"):
        tiny_tree(grid={"finetune.schedule": ["cosine", {"wsd": 0.01}]})
    window = {"pretrain.exposure_schedule": [[0.0, 0.1]], "pretrain.exposure": [1]}
    with pytest.raises(StudyError, match=r"exposure_schedule: \[0\.0, 0\.1\] leaves room for 32 sequences"):
        tiny_tree(grid=window)


def test_the_error_of_a_window_writes_it_as_a_study_file_does() -> None:
    with pytest.raises(
        StudyError, match=r"exposure_schedule: \[0\.25, 0\.3\] leaves .* \(at .*schedule=\[0\.25, 0\.3\]\)"
    ):
        tiny_tree(grid={"pretrain.exposure_schedule": ["uniform", [0.25, 0.3]]}, **{"pretrain.exposure": 1})


def test_values_that_are_invalid_only_together_are_an_error() -> None:
    with pytest.raises(StudyError, match="heads must divide hidden"):
        tiny_tree(grid={"model.hidden": [96, 64], "model.heads": [2, 3]}, **{"model.hidden": 96, "model.kv_heads": 1})


def test_a_section_and_a_field_of_it_cannot_both_be_axes() -> None:
    stopping = {"every": 5, "patience": 2}
    grid = {"posttrain.early_stopping": [None, stopping], "posttrain.early_stopping.every": [5, 10]}
    with pytest.raises(StudyError, match=r"early_stopping\.every is set by grid\.posttrain\.early_stopping and by"):
        tiny_tree(grid=grid, **{"posttrain.early_stopping": stopping})


@pytest.mark.parametrize(
    "heads",
    [{"grid": WIDTHS | {"model.heads": [3, 6]}}, {"cases": {"heads": {"a": {"model.heads": [3, 6]}}}, "grid": WIDTHS}],
    ids=["grid", "cases"],
)
def test_a_grid_of_values_that_are_valid_only_together_has_all_its_points(heads: dict[str, Any]) -> None:
    assert len(tiny_tree(**heads).trials) == 4


def test_a_value_that_no_other_values_make_valid_is_refused_at_its_axis() -> None:
    with pytest.raises(StudyError, match=r"grid\.model\.heads: model: heads must divide hidden"):
        tiny_tree(grid=WIDTHS | {"model.heads": [3, 5]})


def test_a_value_that_its_own_field_refuses_is_refused_without_a_look_at_the_points_of_the_other_axes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[object] = []
    monkeypatch.setattr(axes, "validate", lambda *told: (checked.append(told), validate(*told))[1])
    many = {f"finetune.{name}": [1, 2, 3, 4, 5] for name in ("warmup", "batch", "passes", "weight_decay")}
    with pytest.raises(StudyError, match=r"^tiny\.yaml: grid\.finetune\.lr: must be greater than 0 \(got -1\)"):
        tiny_tree(grid={"finetune.lr": [-1, 1e-3], **many})
    assert len(checked) < 50


def test_a_point_of_the_grid_that_is_invalid_is_named_though_each_value_is_valid_at_another_point() -> None:
    with pytest.raises(StudyError, match=r"heads must divide hidden.* \(at model\.hidden=32, model\.heads=3, "):
        tiny_tree(grid={"model.hidden": [24, 32], "model.heads": [3, 4], "model.kv_heads": [1]})


def test_an_average_of_weights_is_refused_at_the_points_where_early_stopping_reports_half_a_split() -> None:
    stopping = tiny_fields()["posttrain"] | {"early_stopping": {"every": 2, "patience": 1}}
    grid = {"finetune.average": [1, 0.5], "posttrain.early_stopping.split": ["heldout", "tune"]}
    sentence = (
        r"write split: heldout, or remove average \(at finetune.average=0.5, posttrain.early_stopping.split=tune\)"
    )
    with pytest.raises(StudyError, match=sentence):
        tiny_tree(posttrain=stopping, grid=grid)


def test_a_field_that_every_point_sets_needs_no_value_of_its_own_nor_a_valid_one() -> None:
    tree = tiny_tree(**{"model.heads": 3, "model.kv_heads": 3}, grid={"model.hidden": [24, 48], "seed": [0, 1]})
    assert len(tree.trials) == 4
    finetune = tiny_fields()["finetune"]
    del finetune["lr"]
    assert (
        tiny_tree(finetune=finetune, grid={"finetune.lr": [1e-3, 2e-3]}).stages
        == tiny_tree(grid={"finetune.lr": [1e-3, 2e-3]}).stages
    )
    size = {"small": {"model.hidden": [24, 48]}, "large": {"model.hidden": 96}}
    assert len(tiny_tree(**{"model.heads": 3, "model.kv_heads": 3}, grid={}, cases={"size": size}).trials) == 3
    with pytest.raises(StudyError, match=r"tiny\.yaml: finetune\.lr: this field is required"):
        tiny_tree(finetune=finetune, grid={"seed": [0, 1]})


def test_a_field_that_only_some_cases_set_keeps_the_value_of_the_study_in_the_others() -> None:
    finetune = tiny_fields()["finetune"]
    cases = {"method": {"mixed": {"finetune.lr": 1e-3, "pretrain.exposure": 1}, "plain": {"finetune.lr": 2e-3}}}
    whole = tiny_tree(grid={}, cases=cases)
    del finetune["lr"]
    assert tiny_tree(finetune=finetune, grid={}, cases=cases) == whole
    with pytest.raises(StudyError, match=r"tiny\.yaml: finetune\.lr: this field is required"):
        tiny_tree(finetune=finetune, grid={}, cases={"method": {"a": {"finetune.lr": 1e-3}, "b": {"seed": 1}}})
