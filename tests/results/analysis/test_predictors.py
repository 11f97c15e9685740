"""Rank correlations of predictors: equal to scipy's, over the right trials, with intervals over θ_post."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from retain.results.analysis.predictors import (
    PREDICTORS,
    Correlation,
    Prediction,
    correlations,
    interval,
    predictors_document,
    save_predictors,
    spearman,
)

NAMES = list(PREDICTORS)


def trial(
    start: str, true: float | None, rate: float = 1e-4, pipeline: str | None = None, **predicted: Any
) -> Prediction:
    return Prediction({"finetune.lr": rate}, start, pipeline, rate, true, dict.fromkeys(NAMES) | predicted)


def only(found: list[Correlation], predictor: str, **within: Any) -> Correlation:
    wanted = {name.replace("_", "."): value for name, value in within.items()}
    (row,) = (row for row in found if row.predictor == predictor and row.within == wanted)
    return row


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=20))
def test_the_correlation_equals_scipys_where_it_is_defined(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, np.float64).T
    correlation = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert correlation is None
    else:
        assert correlation == pytest.approx(spearmanr(x, y).statistic)


def test_a_perfect_ranking_has_correlation_one_and_a_reversed_one_minus_one() -> None:
    trials = [trial(f"{n}", n**3, gradient_share=n, short_forgetting=-n) for n in range(6)]
    found = correlations(trials)
    right, reversed_ = only(found, "gradient_share"), only(found, "short_forgetting")
    assert (right.correlation, right.high) == pytest.approx((1, 1))
    assert (reversed_.correlation, reversed_.low) == pytest.approx((-1, -1))
    assert (right.trials, right.starts) == (6, 6)
    assert right.low == pytest.approx(-reversed_.high)  # type: ignore[operator]
    assert 0 < right.low < 0.9, "six models that happen to be in order do not prove a perfect predictor"  # type: ignore[operator]


def test_trials_without_the_loss_or_the_predictor_are_not_counted() -> None:
    trials = [trial(f"{n}", n, gradient_share=n) for n in range(4)]
    trials += [trial("later", None, gradient_share=9.0), trial("freed", 9.0)]
    row = only(correlations(trials), "gradient_share")
    assert (row.trials, row.correlation) == (4, pytest.approx(1))
    assert only(correlations(trials), "short_retained_loss").trials == 0


def test_too_few_or_equal_values_give_no_correlation() -> None:
    two = correlations([trial(f"{n}", n, gradient_share=n) for n in range(2)])
    same = correlations([trial(f"{n}", n, gradient_share=1.0) for n in range(5)])
    for row in (*two, *same, *correlations([])):
        assert row.correlation is row.low is row.high is None


def test_a_predictor_can_rank_trials_within_a_rate_and_pipeline_but_not_over_all() -> None:
    """L_ret grows with the rate far more than with the predictor, and the pipelines differ in scale."""
    trials = [
        trial(f"{pipeline}{n}", 100 * rate + scale + n, rate, pipeline, gradient_share=n - 2 * scale)
        for pipeline, scale in (("a", 0), ("b", 20))
        for rate in (1, 2)
        for n in range(5)
    ]
    found = correlations(trials)
    for pipeline in "ab":
        for rate in (1, 2):
            assert only(found, "gradient_share", finetune_lr=rate, pipeline=pipeline).correlation == pytest.approx(1)
        assert only(found, "gradient_share", pipeline=pipeline).trials == 10
    assert only(found, "gradient_share", finetune_lr=1).correlation < 0.5  # type: ignore[operator]
    assert only(found, "gradient_share").correlation < 0.5  # type: ignore[operator]
    assert len(found) == 9 * len(PREDICTORS)


def test_copies_of_a_trial_do_not_narrow_the_interval() -> None:
    draw = np.random.default_rng(3)
    values = [(float(n), float(n + 4 * draw.normal())) for n in range(8)]
    once = [trial(f"{n}", true, gradient_share=predicted) for n, (predicted, true) in enumerate(values)]
    copied = [
        trial(f"{n}", true, gradient_share=predicted) for n, (predicted, true) in enumerate(values) for _ in range(5)
    ]
    spread = []
    for trials in (once, copied):
        row = only(correlations(trials), "gradient_share")
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.correlation <= row.high  # type: ignore[operator]
        spread.append(row.high - row.low)
    assert 0.1 < spread[0] == pytest.approx(spread[1], rel=0.05)


@pytest.mark.parametrize("truth", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("models", [4, 6, 20])
def test_the_interval_covers_the_true_correlation_of_normal_values_at_least_as_often_as_it_says(
    models: int, truth: float
) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1000, models))
    y = truth * x + np.sqrt(1 - truth**2) * draw.normal(size=x.shape)
    ranks = 6 / np.pi * np.arcsin(truth / 2)  # the rank correlation of normal values
    intervals = [interval(spearman(*pair), models) for pair in zip(x, y, strict=True)]  # type: ignore[arg-type]
    covered = np.mean([low <= ranks <= high for low, high in intervals])  # type: ignore[operator]
    assert covered > 0.94


def test_the_saved_document_reads_back(tmp_path: Path) -> None:
    trials = [trial(f"{n}", float((n * 7) % 5), gradient_share=float(n)) for n in range(6)]
    document = predictors_document(trials, correlations(trials))
    path = save_predictors(tmp_path, "mine", document)
    assert path == tmp_path / "studies" / "mine" / "predictors.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps({"format": 1, **document}, allow_nan=False))
