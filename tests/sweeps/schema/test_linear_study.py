"""The linear study: its fields, and the assumptions and thresholds of its theorems."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.linear.closed_forms import mixture, threshold
from retain.sweeps.schema.linear.study import Linear, LinearStudy
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.recipes.linear import linear_stage_recipe

values = st.floats(0, 1)


def theory() -> LinearStudy:
    study = read_study("theory").study
    assert isinstance(study, LinearStudy)
    return study


def test_the_theory_study_meets_every_assumption_and_its_grid_crosses_the_threshold() -> None:
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
def test_no_mixture_is_sufficient_under_the_assumptions_as_the_paper_prints_them(
    pre: float, distance: float, share: float, alpha: float
) -> None:
    # σ_post − σ_pre > c and β < c/2, with σ_pre ≥ 0.
    c = distance * 0.999
    post, beta = pre + distance, share * c / 2
    assert alpha * beta <= (1 - alpha) * pre + alpha * post
    assert threshold(pre, post, beta) is None


@given(values, st.floats(0.001, 1), values)
def test_the_threshold_is_above_two_thirds_under_the_assumptions(post: float, distance: float, share: float) -> None:
    critical = threshold(post + distance, post, share * distance / 2)
    assert critical is None or critical >= 2 / 3


@given(values, st.integers(1, 3))
def test_the_moments_of_a_mixture_are_the_weighted_means_of_the_tasks_moments(alpha: float, count: int) -> None:
    spectra = {"invariant": (1.0,), "pre": (0.5,), "post": (0.1,), "ft": (0.6,)}
    linear = Linear(features=2 * count + 1, inconsistent=count, start=1, beta=0.15, c=0.4, **spectra)
    mixed = mixture(linear.task("pre"), linear.task("post"), alpha)
    inconsistent, specialised = mixed.effective_values[1], mixed.effective_values[-1]
    assert mixed.effective_values[0] == pytest.approx(1)
    assert inconsistent == pytest.approx((1 - alpha) * 0.5 + alpha * 0.1)
    assert specialised == pytest.approx(alpha * 0.15)
    assert mixed.variances[-1] == pytest.approx(alpha)


INVALID: dict[str, tuple[str, list[str]]] = {
    "too few values": ("model.linear.features=9", ["invariant", "4 values for 5 features"]),
    "no invariant feature": ("model.linear.inconsistent=4", ["inconsistent", "leave no", "raise features"]),
    "unknown field": ("model.linear.betta=1", ["betta", "did you mean beta"]),
    "exposure above 1": ("pretrain.exposure=1.5", ["pretrain.exposure", "at most 1"]),
    "stopping time of 0": ("posttrain.time=0", ["posttrain.time", "greater than 0"]),
    "several processes": ("execution.devices=2", ["execution.devices", "one process"]),
    "a corpus of text": ("posttrain.corpus=music", ["posttrain.corpus", "unknown field"]),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_field_is_rejected_with_a_cure(case: str) -> None:
    override, words = INVALID[case]
    with pytest.raises(StudyError) as caught:
        read_study("theory", [override])
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_a_stage_shorter_than_half_a_step_is_refused_and_not_trained_for_longer() -> None:
    study = read_study("theory", ["posttrain.lr=900"]).study
    assert isinstance(study, LinearStudy)
    with pytest.raises(
        StudyError, match=r"posttrain\.lr: a time of .* rounds to zero steps of 900; lower posttrain\.lr"
    ):
        linear_stage_recipe(study, "posttrain")
