"""The linear study: its fields and assumptions, checked before anything is trained, and the identity of its stages."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retain.launchers.planning.opened_study import open_study
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear import Linear, LinearStudy, stopping_time
from retain.sweeps.schema.linear_theory import mixture, threshold
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.scaled_down import cut_down
from retain.sweeps.tree.tree import Tree, expand

NOTHING = Facts("", 0, {})
values = st.floats(0, 1)


def tree(*overrides: str) -> Tree:
    return expand(read_study("theory", overrides), NOTHING)


def theory() -> LinearStudy:
    study = read_study("theory").study
    assert isinstance(study, LinearStudy)
    return study


def recipes(made: Tree, kind: str) -> list[dict[str, Any]]:
    return [json.loads(stage.recipe) for stage in made.stages.values() if stage.stage == kind]


def refusal(*overrides: str) -> str:
    with pytest.raises(StudyError) as refused:
        tree(*overrides)
    return str(refused.value)


def test_the_study_theory_holds_every_assumption_and_its_grid_crosses_the_threshold() -> None:
    study = theory()
    assert study.model.linear.broken_assumptions() == []
    alphas, critical = study.grid["pretrain.exposure"], max(alpha or 0 for alpha in study.model.linear.thresholds())
    assert critical == pytest.approx(0.7576, abs=1e-4)
    assert sum(alpha < critical for alpha in alphas) >= 3
    assert sum(alpha > critical for alpha in alphas) >= 3
    assert study.grid["seed"] == [0, 1, 2]


@given(values, values, st.floats(0.001, 1), values)
def test_mixing_is_sufficient_exactly_above_the_threshold(pre: float, post: float, beta: float, alpha: float) -> None:
    critical = threshold(pre, post, beta)
    gap = alpha * beta - ((1 - alpha) * pre + alpha * post)
    assume(abs(gap) > 1e-9)
    assert (gap > 0) == (critical is not None and alpha > critical)


@given(values, values, values, st.floats(0, 1))
def test_with_the_small_values_in_pretraining_as_the_paper_prints_it_no_mixture_is_sufficient(
    pre: float, distance: float, share: float, alpha: float
) -> None:
    # σ_post − σ_pre > c and β < c/2, with σ_pre ≥ 0.
    c = distance * 0.999
    post, beta = pre + distance, share * c / 2
    assert alpha * beta <= (1 - alpha) * pre + alpha * post
    assert threshold(pre, post, beta) is None


@given(values, st.floats(0.001, 1), values)
def test_under_the_assumptions_the_threshold_lies_above_two_thirds(post: float, distance: float, share: float) -> None:
    critical = threshold(post + distance, post, share * distance / 2)
    assert critical is None or critical >= 2 / 3


@given(values, st.integers(1, 3))
def test_the_moments_of_the_mixture_are_the_means_of_the_moments(alpha: float, count: int) -> None:
    spectra = {"invariant": (1.0,), "pre": (0.5,), "post": (0.1,), "ft": (0.6,)}
    linear = Linear(features=2 * count + 1, inconsistent=count, start=1, beta=0.15, c=0.4, **spectra)
    mixed = mixture(linear.task("pre"), linear.task("post"), alpha)
    inconsistent, specialised = mixed.pulls[1], mixed.pulls[-1]
    assert mixed.pulls[0] == pytest.approx(1)
    assert inconsistent == pytest.approx((1 - alpha) * 0.5 + alpha * 0.1)
    assert specialised == pytest.approx(alpha * 0.15)
    assert mixed.variances[-1] == pytest.approx(alpha)


BROKEN = {
    "an invariant feature below another": (
        "model.linear.invariant=0.52",
        ["model.linear.invariant", "0.55", "raise it"],
    ),
    "pre too near to post": ("model.linear.pre=0.4", ["model.linear.pre", "more than c", "0.43", "lower c"]),
    "ft too near to post": ("model.linear.ft=0.3", ["model.linear.ft", "more than c", "lower c"]),
    "beta too large": ("model.linear.beta=0.3", ["model.linear.beta", "c/2", "0.215", "lower β"]),
    "no mixture is sufficient": ("model.linear.beta=0.03", ["C.6", "no α", "post below beta"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_assumption_is_refused_when_planned_and_may_be_explored(case: str) -> None:
    override, words = BROKEN[case]
    said = refusal(override)
    for word in ("theory.yaml", *words, "model.linear.assumptions: explored"):
        assert word in said
    explored = tree(override, "model.linear.assumptions=explored", "pretrain.time=50")
    assert len(explored.trials) == 30


WRONG = {
    "values for no feature": ("model.linear.features=9", ["invariant", "4 values for 5 features"]),
    "no invariant feature": ("model.linear.inconsistent=4", ["inconsistent", "leave none", "raise features"]),
    "unknown field": ("model.linear.betta=1", ["betta", "did you mean beta"]),
    "exposure above 1": ("pretrain.exposure=1.5", ["pretrain.exposure", "less than or equal to 1"]),
    "a stage without a time": ("posttrain.time=0", ["posttrain.time", "greater than 0"]),
    "several processes": ("execution.devices=2", ["execution.devices", "one process"]),
    "text": ("posttrain.corpus=music", ["posttrain.corpus", "unknown field"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_with_the_cure(case: str) -> None:
    override, words = WRONG[case]
    said = refusal(override)
    assert all(word in said for word in words), said


def test_without_a_threshold_a_stopping_time_must_be_given() -> None:
    assert "pretrain.time" in refusal("model.linear.assumptions=explored", "model.linear.beta=0.03")


def test_the_stopping_time_is_that_at_which_the_order_of_learning_changes() -> None:
    study = theory()
    critical = max(alpha or 0 for alpha in study.model.linear.thresholds())
    assert stopping_time(study) == pytest.approx(16 / (critical * 0.21))
    steps = {recipe["steps"] for recipe in recipes(tree(), "pretrain")}
    assert steps == {round(stopping_time(study) / 0.005)}


def test_trials_share_the_stages_that_are_the_same() -> None:
    made = tree("posttrain.regularisation=[0, 0.1, 1]")
    kinds = [stage.stage for stage in made.stages.values()]
    assert (kinds.count("pretrain"), kinds.count("posttrain"), kinds.count("finetune")) == (30, 90, 90)


def test_an_unmixed_pretraining_is_the_same_whatever_d_post_is() -> None:
    betas = ("model.linear.beta=[0.2, 0.21]", "pretrain.time=100", "seed=0")
    made = tree(*betas, "pretrain.exposure=[0, 0.9]")
    pretrain = [stage for stage in made.stages.values() if stage.stage == "pretrain"]
    assert sorted(stage.axes["pretrain.exposure"] for stage in pretrain) == [0, 0.9, 0.9]


def test_a_step_counts_as_a_token_and_the_plan_has_every_total() -> None:
    made = tree()
    totals = total_cost(made, done=(), device="H100")
    assert totals.tokens == 30 * (20114 + 2000 + 800)
    assert totals.flops == totals.tokens * 8 * 8**3
    assert totals.disk_bytes == 90 * 2 * 8**2 * 4


def test_keys_change_with_what_decides_the_weights_and_with_nothing_else() -> None:
    base = set(tree().stages)
    for override in ("seed=[3, 4, 5]", "model.linear.start=17", "pretrain.lr=0.004", "model.linear.invariant=0.9"):
        assert not base & set(tree(override).stages)
    assert set(tree("execution.threads=2", "model.linear.assumptions=explored", "model.linear.c=0.425").stages) == base
    # A golden key: another one means that runs trained before no longer count.
    assert next(iter(tree().stages)) == "b7d037f7595c82b97179"


def test_a_linear_study_needs_no_data_and_its_keys_are_final(tmp_path: Path) -> None:
    opened = open_study("theory", (), tmp_path / "runs")
    assert not opened.tree.provisional
    assert opened.facts.corpora == {}
    assert not (tmp_path / "runs").exists()


def test_a_linear_study_is_not_drilled() -> None:
    with pytest.raises(StudyError, match="drill another study"):
        cut_down(read_study("theory"))
