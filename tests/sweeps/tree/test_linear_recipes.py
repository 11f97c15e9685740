"""The tree of a linear study: its assumptions are checked before training, and its stages are shared and keyed exactly."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.planning.opened_study import open_study
from retain.results.analysis.linear_trials import Theory
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear.closed_forms import Descent
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.recipes.linear import stopping_time
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import Tree, expand

NO_DATA = Facts("", 0, {})


def tree(*overrides: str) -> Tree:
    return expand(read_study("theory", overrides), NO_DATA)


def theory() -> LinearStudy:
    study = read_study("theory").study
    assert isinstance(study, LinearStudy)
    return study


def recipes(made: Tree, kind: str) -> list[dict[str, Any]]:
    return [json.loads(stage.recipe) for stage in made.stages.values() if stage.stage == kind]


def error_of(*overrides: str) -> str:
    with pytest.raises(StudyError) as caught:
        tree(*overrides)
    return str(caught.value)


BROKEN = {
    "an invariant feature below another": (
        "model.linear.invariant=0.52",
        ["model.linear.invariant", "0.55", "raise model.linear.invariant"],
    ),
    "pre too near to post": ("model.linear.pre=0.4", ["model.linear.pre", "more than c", "0.43", "lower c"]),
    "ft too near to post": ("model.linear.ft=0.3", ["model.linear.ft", "more than c", "lower c"]),
    "beta too large": ("model.linear.beta=0.3", ["model.linear.beta", "c/2", "0.215", "lower β"]),
    "no mixture is sufficient": ("model.linear.beta=0.03", ["C.6", "no α", "post below beta"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_assumption_is_an_error_at_plan_time_unless_it_is_explored(case: str) -> None:
    override, words = BROKEN[case]
    message = error_of(override)
    for word in ("theory.yaml", *words, "model.linear.assumptions: explored"):
        assert word in message
    explored = tree(override, "model.linear.assumptions=explored", "pretrain.time=50")
    assert len(explored.trials) == 30


def test_the_consistent_reading_drops_only_the_bound_on_beta() -> None:
    assert len(tree("model.linear.assumptions=consistent", "model.linear.beta=0.3").trials) == 30
    for case, (override, words) in BROKEN.items():
        if case != "beta too large":
            assert words[0] in error_of(override, "model.linear.assumptions=consistent")


def test_with_a_large_beta_a_small_exposure_ends_forgetting() -> None:
    """Both studies by their closed forms: Δ unmixed, and at the exposures from which on nothing is forgotten."""
    usual, small = theories("theory"), theories("theory-small-alpha")
    assert usual.finetune.regularisation == small.finetune.regularisation == 0
    assert usual.posttrain.regularisation == small.posttrain.regularisation > 0
    assert usual.thresholds == pytest.approx([0.758, 0.738], abs=1e-3)
    assert small.thresholds == pytest.approx([0.169, 0.163], abs=1e-3)
    assert usual.forgotten(0) == pytest.approx(0.426, abs=1e-3)
    assert usual.forgotten(0.35) > 0.4
    assert small.forgotten(0) == pytest.approx(0.281, abs=1e-3)
    assert max(abs(small.forgotten(alpha)) for alpha in (0.3, 0.35, 0.5)) < 0.01 * small.forgotten(0)


def theories(name: str) -> Theory:
    """The closed forms of a study of Retain."""
    study = read_study(name).study
    assert isinstance(study, LinearStudy)
    linear, post, tuned = study.model.linear, study.posttrain, study.finetune
    stages = (
        Descent(linear.task("pre"), stopping_time(study)),
        Descent(linear.task("post"), post.time, post.regularisation),
        Descent(linear.task("ft"), tuned.time, tuned.regularisation),
    )
    return Theory(linear.start, *stages)


def test_a_study_without_a_threshold_must_give_a_stopping_time() -> None:
    assert "pretrain.time" in error_of("model.linear.assumptions=explored", "model.linear.beta=0.03")


def test_the_default_stopping_time_is_when_the_order_of_learning_changes() -> None:
    study = theory()
    critical = max(alpha or 0 for alpha in study.model.linear.thresholds())
    assert stopping_time(study) == pytest.approx(16 / (critical * 0.21))
    steps = {recipe["steps"] for recipe in recipes(tree(), "pretrain")}
    assert steps == {round(stopping_time(study) / 0.005)}


def test_trials_share_equal_stages() -> None:
    made = tree("posttrain.regularisation=[0, 0.1, 1]")
    kinds = [stage.stage for stage in made.stages.values()]
    assert (kinds.count("pretrain"), kinds.count("posttrain"), kinds.count("finetune")) == (30, 90, 90)


def test_unmixed_pretraining_does_not_depend_on_d_post() -> None:
    betas = ("model.linear.beta=[0.2, 0.21]", "pretrain.time=100", "seed=0")
    made = tree(*betas, "pretrain.exposure=[0, 0.9]")
    pretrain = [stage for stage in made.stages.values() if stage.stage == "pretrain"]
    assert sorted(stage.axes["pretrain.exposure"] for stage in pretrain) == [0, 0.9, 0.9]


def test_a_step_counts_as_one_token_in_the_totals_of_a_plan() -> None:
    made = tree()
    totals = total_cost(made, done=(), device="H100")
    assert totals.tokens == 30 * (20114 + 2000 + 800)
    assert totals.flops == totals.tokens * 8 * 8**3
    assert totals.disk_bytes == 90 * 2 * 8**2 * 4


def test_keys_change_with_every_field_that_decides_the_weights_and_with_no_other() -> None:
    base = set(tree().stages)
    for override in ("seed=[3, 4, 5]", "model.linear.start=17", "pretrain.lr=0.004", "model.linear.invariant=0.9"):
        assert not base & set(tree(override).stages)
    assert set(tree("execution.threads=2", "model.linear.assumptions=explored", "model.linear.c=0.425").stages) == base
    # A golden key: if it changes, runs that users have trained no longer count.
    assert next(iter(tree().stages)) == "b7d037f7595c82b97179"


def test_a_linear_study_needs_no_data_and_its_keys_are_final(tmp_path: Path) -> None:
    opened = open_study("theory", (), tmp_path / "runs")
    assert not opened.tree.provisional
    assert opened.facts.corpora == {}
    assert not (tmp_path / "runs").exists()


def test_a_linear_study_cannot_be_drilled() -> None:
    with pytest.raises(StudyError, match="drill another study"):
        scale_down(read_study("theory"))
