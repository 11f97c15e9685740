"""The choice of precision and compilation on CPUs is arithmetic on measured speeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.speed.choice import (
    FEWEST_STEPS,
    choose_bf16,
    choose_compiled,
    compiling,
    planned_choices,
    too_few,
    worth_trying,
)
from retain.launchers.speed.measured import Compiled, Speeds
from retain.launchers.speed.shape import place_of, step_shape, steps_so_far
from retain.sweeps.schema.execution import Execution
from tests.studies import tiny_tree


def speeds(fp32: float, bf16: float, compiled: Compiled | None = None) -> Speeds:
    """Measured speeds, with what is known of steps that are compiled in bf16."""
    found = Speeds(fp32=fp32, bf16=bf16, of={})
    return Speeds(**found, compiled={"bf16": compiled}) if compiled else found


CODE = Compiled(uncompiled=0.10, step=0.08, cold=30.0, warm=4.0)


@pytest.mark.parametrize(("fp32", "taken"), [(0.80, False), (1.0, False), (1.14, False), (1.16, True), (4.0, True)])
def test_bf16_is_taken_where_a_step_is_15_percent_faster(fp32: float, taken: bool) -> None:
    choice = choose_bf16(speeds(fp32, 1.0))
    assert choice.taken is taken
    assert f"{fp32:.2f} times as fast" in choice.reason


def test_short_paths_are_not_measured() -> None:
    assert too_few(FEWEST_STEPS) is None
    assert f"{FEWEST_STEPS - 1} steps" in str(too_few(FEWEST_STEPS - 1))


@pytest.mark.parametrize(("steps", "taken"), [(199, False), (201, True)])
def test_compiled_code_is_used_where_it_saves_more_than_loading_it_takes(steps: int, taken: bool) -> None:
    assert choose_compiled(CODE, steps).taken is taken


def test_compiling_is_tried_only_for_minutes_of_steps() -> None:
    assert not worth_trying(0.1, 1_900).taken
    assert worth_trying(0.1, 2_100).taken


def test_what_is_known_of_compiled_steps_counts_for_its_own_precision() -> None:
    found = speeds(0.2, 0.1, CODE)
    assert compiling(found, "bf16", 300).taken
    assert not compiling(found, "fp32", 300).taken


def test_a_plan_says_what_is_chosen_and_why() -> None:
    found = speeds(0.12, 0.08, CODE)
    precision, compiled = planned_choices("auto", "auto", found, 1000, 600)
    assert precision == "precision bf16: a step takes 80 ms in bf16 and 120 ms in fp32: 1.50 times as fast"
    assert compiled == (
        "compiled: 600 steps of 80 ms instead of 100 ms save 12 s, and loading the compiled code takes 4.0 s"
    )


def test_a_plan_says_what_is_not_measured_yet() -> None:
    assert all(
        "not measured on this kind of processor yet" in line
        for line in planned_choices("auto", "auto", None, 1000, 600)
    )


def test_a_plan_says_that_short_paths_stay_in_fp32_whatever_is_measured() -> None:
    lines = planned_choices("auto", "auto", speeds(4.0, 1.0), 30, 30)
    assert lines == ["fp32 and not compiled: a path of fewer than 200 steps is too short to measure"]
    assert planned_choices("auto", "auto", speeds(4.0, 1.0), 40, 10) == lines  # so that stages share the sentence
    assert planned_choices("bf16", "auto", None, 30, 30) == [lines[0].removeprefix("fp32 and ")]


@pytest.mark.parametrize(
    ("precision", "compiles", "lines"), [("fp32", True, 0), ("bf16", "auto", 1), ("auto", False, 1)]
)
def test_a_plan_explains_only_what_the_study_leaves_open(precision: str, compiles: Any, lines: int) -> None:
    assert len(planned_choices(precision, compiles, speeds(2.0, 1.0), 1000, 600)) == lines


def shapes(**overrides: Any) -> set[str]:
    """The places of the speeds of all stages of a tiny study, by name of the stage."""
    tree = tiny_tree(**overrides)
    found = set()
    for trial in tree.trials:
        path = [json.loads(tree.stages[key].recipe) for key in trial.path]
        for end in range(1, len(path) + 1):
            execution = Execution().of_stage("pretrain").model_dump(mode="json")
            found.add(place_of(Path(), step_shape(path[:end], execution)).name)
    return found


def test_seeds_rates_and_amounts_share_one_measurement() -> None:
    assert len(shapes(grid={"seed": [0, 1, 2], "finetune.lr": [1e-5, 1e-4], "pretrain.tokens": [2560, 5120]})) == len(
        shapes(grid={})
    )


@pytest.mark.parametrize("change", [{"sequence_length": 16}, {"pretrain.batch": 2}])
def test_another_shape_of_batches_is_another_measurement(change: dict[str, Any]) -> None:
    assert shapes(grid={}, **change) != shapes(grid={})


def test_the_steps_of_a_path_are_those_of_all_its_stages() -> None:
    assert steps_so_far([{"steps": 150}, {"steps": 40}, {"steps": 10}]) == 200
