"""The two-layer linear model: gradient descent beside the closed forms, feature by feature, and the theorems themselves."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retain.lightning_modules.linear import LinearModel, descend, load_linear, population_loss, start_linear
from retain.sweeps.schema.linear.closed_forms import (
    Descent,
    Task,
    flow,
    flow_through,
    initial_strengths,
    logistic,
    mixture,
    squared_loss,
)
from retain.sweeps.schema.linear.study import Linear, LinearStudy
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.recipes.linear import stopping_time

TOLERANCE = 0.02
"""What the study `theory` states: the largest distance of any feature from its closed form at any time, at its lr."""
UNMIXED, MIXED = 0.0, 0.95
KINDS = {"invariant": slice(0, 4), "inconsistent": slice(4, 6), "specialised": slice(6, 8)}


def learning_time(effective: float, variance: float, start: float) -> float:
    """The time at which a feature has half of its final strength, about T / effective; 0 if it starts with more."""
    if effective / variance <= 2 * start:
        return 0.0
    return math.log(effective / (variance * start) - 1) / (2 * effective)


pulls = st.floats(0, 2)
strengths = st.floats(0, 1)
times = st.floats(0, 20)


def theory() -> LinearStudy:
    study = read_study("theory").study
    assert isinstance(study, LinearStudy)
    return study


def linear() -> Linear:
    return theory().model.linear


def stages_at(alpha: float) -> list[Descent]:
    study, spectrum = theory(), linear()
    later = ((study.posttrain, spectrum.task("post")), (study.finetune, spectrum.task("ft")))
    pre = Descent(mixture(spectrum.task("pre"), spectrum.task("post"), alpha), stopping_time(study))
    return [pre, *(Descent(task, stage.time, stage.regularisation) for stage, task in later)]


@cache
def simulated(alpha: float, lr: float = 0.005, every: int = 100) -> list[list[tuple[float, list[float]]]]:
    """By stage, the times and the strengths of the features at them, from one stage to the next."""
    spectrum = linear()
    model, found = start_linear(spectrum.features, spectrum.start, seed=0), []
    for stage in stages_at(alpha):
        kept = []
        for step, model in descend(model, stage.task, lr, round(stage.time / lr), stage.regularisation, every):  # noqa: B020
            kept.append((step * lr, model.strengths.tolist()))
        found.append(kept)
    return found


def ends(alpha: float) -> list[list[float]]:
    return [stage[-1][1] for stage in simulated(alpha)]


def deviation(stage: Descent, kept: Sequence[tuple[float, Sequence[float]]]) -> float:
    start = kept[0][1]
    pairs = ((row, flow(stage, start, time)) for time, row in kept)
    return max(abs(a - b) for row, exact in pairs for a, b in zip(row, exact, strict=True))


def test_a_loss_that_has_reached_zero_is_not_below_it() -> None:
    """What the model does with features that the inputs of the task lack costs nothing."""
    task = linear().task("ft")
    strengths = np.where(np.array(task.variances) > 0, task.targets, 100.0)
    for seed in range(20):
        start = start_linear(8, linear().start, seed=seed)
        learned = replace(start, w1=start.u @ np.diag(strengths), w2=start.v.T)
        assert 0 <= population_loss(learned, task) < 1e-9


@pytest.mark.parametrize("alpha", [UNMIXED, 0.5, 0.76, MIXED])
def test_every_feature_follows_its_closed_form_through_all_three_stages(alpha: float) -> None:
    for stage, kept in zip(stages_at(alpha), simulated(alpha), strict=True):
        assert deviation(stage, kept) < TOLERANCE
    last = flow_through(stages_at(alpha), initial_strengths(8, linear().start))
    for simulation, exact in zip(ends(alpha), last, strict=True):
        assert simulation == pytest.approx(exact, abs=TOLERANCE)


def test_the_distance_from_the_closed_form_shrinks_in_proportion_to_the_step() -> None:
    stage = stages_at(UNMIXED)[0]
    coarse, middle, fine = (deviation(stage, simulated(UNMIXED, lr, round(0.4 / lr))[0]) for lr in (0.04, 0.02, 0.01))
    assert coarse / middle == pytest.approx(2, rel=0.15)
    assert middle / fine == pytest.approx(2, rel=0.15)


def test_features_never_mix() -> None:
    model = start_linear(8, linear().start, seed=3)
    *_, (_, end) = descend(model, stages_at(0.5)[0].task, 0.02, 5000, every=5000)
    inner = end.u.T @ end.theta @ end.v
    assert np.abs(inner - np.diag(np.diagonal(inner))).max() < 1e-12


def objective(
    w1: torch.Tensor, w2: torch.Tensor, model: LinearModel, task: Task, regularisation: float
) -> torch.Tensor:
    """½ E‖y − θx‖² + ½ λ_reg ‖θ − θ_0‖² in torch, with θ_0 that of the model."""
    u, v, start = (torch.from_numpy(matrix) for matrix in (model.u, model.v, model.theta))
    targets, variances = (torch.tensor(values, dtype=torch.float64) for values in (task.targets, task.variances))
    error = w1 @ w2 - u @ torch.diag(targets) @ v.T
    loss = ((error @ v @ torch.diag(variances) @ v.T) * error).sum()
    return 0.5 * (loss + regularisation * (w1 @ w2 - start).square().sum())


def test_the_written_out_gradient_is_that_of_the_objective() -> None:
    draw, frame = np.random.default_rng(0), start_linear(8, 1.0, seed=1)
    task, lr, regularisation = linear().task("ft"), 0.01, 0.3
    model = LinearModel(draw.standard_normal((8, 8)), draw.standard_normal((8, 8)), frame.u, frame.v)
    steps = [model for _, model in descend(model, task, lr, 3, regularisation)]
    for before, after in pairwise(steps):  # the later ones away from θ_0, where the regulariser pulls too
        w1, w2 = (torch.from_numpy(matrix).requires_grad_() for matrix in (before.w1, before.w2))
        objective(w1, w2, model, task, regularisation).backward()
        for weights, stepped in ((w1, after.w1), (w2, after.w2)):
            assert weights.grad is not None
            assert np.allclose(stepped, (weights - lr * weights.grad).detach().numpy(), atol=1e-12)


def test_the_population_loss_is_the_mean_over_drawn_inputs_and_the_sum_over_features() -> None:
    task, draw = linear().task("pre"), np.random.default_rng(0)
    model = start_linear(8, 0.4, seed=2)
    x = model.v @ (np.sqrt(task.variances)[:, None] * draw.standard_normal((8, 200_000)))
    target = model.u @ np.diag(task.targets) @ model.v.T
    drawn = np.square((target - model.theta) @ x).sum(0).mean()
    assert population_loss(model, task) == pytest.approx(float(drawn), rel=0.01)
    assert population_loss(model, task) == pytest.approx(squared_loss(task, model.strengths.tolist()))


@given(pulls, st.floats(0, 2), strengths, times, times)
def test_the_closed_form_goes_on_from_where_it_is(
    pull: float, variance: float, start: float, a: float, b: float
) -> None:
    middle = logistic(pull, variance, start, a)
    assert logistic(pull, variance, middle, b) == pytest.approx(
        logistic(pull, variance, start, a + b), rel=1e-6, abs=1e-12
    )


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(0, 1))
def test_the_closed_form_solves_the_equation(pull: float, variance: float, start: float) -> None:
    step = 1e-6
    slope = (logistic(pull, variance, start, step) - start) / step
    assert slope == pytest.approx(2 * start * (pull - variance * start), abs=1e-4)


@given(st.floats(0.05, 2), st.floats(0.1, 2), st.floats(1e-9, 1e-3))
def test_at_its_learning_time_a_feature_has_half_of_its_strength(pull: float, variance: float, start: float) -> None:
    assert logistic(pull, variance, start, learning_time(pull, variance, start)) == pytest.approx(pull / variance / 2)


@pytest.mark.parametrize("start", [8.0, 16.0, 64.0])
def test_features_are_learned_in_descending_order_of_their_effective_values_at_t_over_these(start: float) -> None:
    task = mixture(linear().task("pre"), linear().task("post"), 0.5)
    learned = [
        learning_time(pull, variance, math.exp(-2 * start))
        for pull, variance in zip(task.effective_values, task.variances, strict=True)
    ]
    by_value = sorted(range(8), key=lambda feature: -task.effective_values[feature])
    assert [learned[feature] for feature in by_value] == sorted(learned)
    for pull, time in zip(task.effective_values, learned, strict=True):
        assert time * pull / start == pytest.approx(1, abs=1.2 / start)


def test_theorem_5_1_mixed_learns_the_specialised_features_and_unmixed_the_inconsistent_ones() -> None:
    unmixed, mixed = ends(UNMIXED)[0], ends(MIXED)[0]
    for end in (unmixed, mixed):
        assert end[KINDS["invariant"]] == pytest.approx(linear().invariant, rel=1e-3)
    assert unmixed[KINDS["inconsistent"]] == pytest.approx(linear().pre, rel=1e-3)
    assert max(unmixed[KINDS["specialised"]]) < 1e-10
    assert max(mixed[KINDS["inconsistent"]]) < 1e-5
    # Its inputs have the variance α in the mixture, so that what it learns is β and not αβ.
    assert mixed[KINDS["specialised"]] == pytest.approx([linear().beta] * 2, rel=0.01)


def test_theorem_5_2_post_training_moves_only_what_pretraining_has_learned() -> None:
    (before, after, _), (before_mixed, after_mixed, _) = ends(UNMIXED), ends(MIXED)
    moved = [b - a for a, b in zip(before, after, strict=True)]
    assert max(moved[KINDS["inconsistent"]]) < -0.3
    assert max(map(abs, moved[KINDS["specialised"]] + moved[KINDS["invariant"]])) < 1e-8
    # At large α pretraining has brought the specialised features to β already; what is left to move is 1e-3.
    moved = [b - a for a, b in zip(before_mixed, after_mixed, strict=True)]
    assert all(0 < change < 1e-2 for change in moved[KINDS["specialised"]])
    assert max(map(abs, moved[KINDS["inconsistent"]] + moved[KINDS["invariant"]])) < 1e-5


@given(st.floats(0, 2), st.floats(0, 5), times)
def test_a_feature_that_is_zero_stays_zero_with_any_regulariser(
    target: float, regularisation: float, time: float
) -> None:
    assert flow(Descent(Task((target,), (1.0,)), time, regularisation), [0.0], time) == (0.0,)


def test_theorem_5_3_only_the_unmixed_model_forgets() -> None:
    post = linear().task("post")
    forgotten = {alpha: squared_loss(post, end) - squared_loss(post, start) for alpha in (UNMIXED, MIXED)
                 for _, start, end in [ends(alpha)]}  # fmt: skip
    assert abs(forgotten[MIXED]) < 1e-4
    assert forgotten[UNMIXED] > 0.3
    # The other side of it, which the theorem does not speak of: what keeps D_post does not learn D_ft.
    ft = linear().task("ft")
    assert squared_loss(ft, ends(MIXED)[2]) > 50 * squared_loss(ft, ends(UNMIXED)[2])


def test_from_a_smaller_start_forgetting_becomes_a_step_at_the_threshold() -> None:
    spectrum = linear()
    critical = max(alpha for alpha in spectrum.thresholds() if alpha)
    forgotten: dict[float, list[float]] = {-0.02: [], 0.02: []}
    for start in (16, 64, 256):
        for side, found in forgotten.items():
            pre, *later = stages_at(critical + side)
            longer = Descent(pre.task, pre.time * start / spectrum.start)
            _, post, end = flow_through([longer, *later], initial_strengths(8, start))
            found.append(squared_loss(spectrum.task("post"), end) - squared_loss(spectrum.task("post"), post))
    assert forgotten[0.02][0] > 0.05
    assert abs(forgotten[0.02][-1]) < 1e-9
    assert min(forgotten[-0.02]) > 0.15


@pytest.mark.parametrize("seed", [0, 1])
def test_from_the_identity_in_other_coordinates_the_same_features_are_learned(seed: int) -> None:
    for alpha in (UNMIXED, MIXED):
        model = start_linear(8, linear().start, seed)
        small = math.exp(-linear().start) * np.eye(8)
        literal = LinearModel(small, small, model.u, model.v)
        pre = stages_at(alpha)[0]
        *_, (_, end) = descend(literal, pre.task, 0.02, round(pre.time / 0.02), every=10_000)
        assert end.strengths.tolist() == pytest.approx(ends(alpha)[0], abs=0.01)


def test_the_seed_draws_the_singular_vectors_and_decides_no_strength() -> None:
    first, second = start_linear(8, 2.0, 0), start_linear(8, 2.0, 1)
    assert not np.allclose(first.u, second.u)
    identity = np.eye(8)
    assert all(np.allclose(frame.T @ frame, identity) for frame in (first.u, first.v, second.u, second.v))
    task = linear().task("post")
    *_, (_, one) = descend(first, task, 0.02, 300)
    *_, (_, other) = descend(second, task, 0.02, 300)
    assert np.allclose(one.strengths, other.strengths, atol=1e-12)


def test_saved_matrices_come_back_as_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = start_linear(8, 2.0, 5)
    folder = tmp_path_factory.mktemp("linear") / "model"
    model.save(folder)
    assert all(
        np.array_equal(a, b) for a, b in zip(vars(load_linear(folder)).values(), vars(model).values(), strict=True)
    )
