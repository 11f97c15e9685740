"""Closed forms of the two-layer linear model θ = W1·W2 (paper, Section 5 and Appendix C), feature by feature.

W1 and W2 start as exp(−T) times the identity, in the coordinates of the singular vectors that the tasks share. From that start,
gradient flow never couples two features. Let s = uᵀ W1 W2 v be the strength of a feature, σ its singular value in the task,
and q the variance of its input. Then

    ds/dt = 2 s (q σ − q s),    s(0) = exp(−2T),

which is a logistic curve. q σ is the effective singular value: a feature is learned at about time T / (q σ). Time is that of
the flow on half the squared loss, so one step of gradient descent with learning rate lr covers the time lr.

The theorems as printed differ from these solutions in four places:
- Assumptions: with σ_post − σ_pre > c (Definition C.3), β < c/2 (Definition C.4) and σ_pre ≥ 0, sufficient mixing (Assumption
  C.6) holds for no α. Retain requires |σ_post − σ_pre| > c instead, with σ_post below σ_pre: Theorem C.10 stops both
  pretrainings at one time. With β < c/2, sufficient mixing then needs σ_post < β < σ_pre, and its threshold α* is above 2/3.
  Without it, which only the last bound of Theorem C.17 uses, α* is small for a large β.
- Theorem 5.1: a specialised feature converges to β, not to αβ, because its input has the variance α. αβ decides when the
  feature is learned, not its final strength.
- Theorem 5.2: above α*, the specialised features are already at β when post-training starts. Post-training changes them only
  near α*. A feature that is exactly 0 stays 0; one that starts at exp(−2T) stays small while later stages are short
  against T / σ. Post-training has a regulariser; fine-tuning has none (Lemma C.16, Theorem C.17).
- Theorem 5.3: Δ falls from its unmixed value to 0 slightly above α*, over a range of α whose width shrinks as 1/T.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """The task y = A x with A = U diag(targets) Vᵀ and inputs x ~ N(0, V diag(variances) Vᵀ); one entry per feature."""

    targets: Numbers
    """The singular values σ; 0 if the input of the feature is always zero."""
    variances: Numbers
    """The input variances q."""

    @property
    def effective_values(self) -> Numbers:
        """The effective singular values q σ, which are those of E[y xᵀ]."""
        return tuple(target * variance for target, variance in zip(self.targets, self.variances, strict=True))


@dataclass(frozen=True)
class Descent:
    """One stage: gradient flow on ½ E‖y − θx‖² + ½ λ_reg ‖θ − θ_0‖², where θ_0 is the model that the stage starts from."""

    task: Task
    time: float
    """The duration of the flow."""
    regularisation: float = 0.0
    """λ_reg."""


def mixture(pre: Task, post: Task, weight: float) -> Task:
    """The mixture (1 − α)·D_pre + α·D_post, where α is the weight."""
    variances = _mean(pre.variances, post.variances, weight)
    effective = _mean(pre.effective_values, post.effective_values, weight)
    return Task(_targets(effective, variances), variances)


def regularised_task(task: Task, strengths: Sequence[float], regularisation: float) -> Task:
    """The task whose plain flow equals the flow on `task` with the penalty λ_reg‖θ − θ_0‖², where θ_0 has these strengths."""
    variances = tuple(variance + regularisation for variance in task.variances)
    effective = tuple(
        value + regularisation * start for value, start in zip(task.effective_values, strengths, strict=True)
    )
    return Task(_targets(effective, variances), variances)


def initial_strengths(features: int, start: float) -> Numbers:
    """The strength exp(−2T) for every feature, where T is `start`."""
    return (math.exp(-2 * start),) * features


def flow(descent: Descent, strengths: Sequence[float], time: float) -> Numbers:
    """The strengths of all features after some time of a stage that starts with `strengths`."""
    task = regularised_task(descent.task, strengths, descent.regularisation)
    return tuple(
        logistic(effective, variance, start, time)
        for effective, variance, start in zip(task.effective_values, task.variances, strengths, strict=True)
    )


def flow_through(stages: Sequence[Descent], strengths: Sequence[float]) -> list[Numbers]:
    """The strengths at the end of each stage; each stage starts where the one before it ended."""
    ends = []
    for stage in stages:
        strengths = flow(stage, strengths, stage.time)
        ends.append(tuple(strengths))
    return ends


def logistic(effective: float, variance: float, start: float, time: float) -> float:
    """The solution of ds/dt = 2 s (effective − variance · s) with s(0) = start ≥ 0; a start of 0 stays 0."""
    if start == 0:
        return 0.0
    exponent = -2 * abs(effective) * time
    spread = start * variance * 2 * time * (math.expm1(exponent) / exponent if exponent else 1.0)
    # Both branches are the same solution; each avoids a growing exponential.
    return start / (math.exp(exponent) + spread) if effective >= 0 else start * math.exp(exponent) / (1 + spread)


def squared_loss(task: Task, strengths: Sequence[float]) -> float:
    """E‖y − θx‖² of a model θ whose features have these strengths."""
    parts = zip(task.variances, strengths, task.targets, strict=True)
    return math.fsum(variance * (strength - target) ** 2 for variance, strength, target in parts)


def threshold(pre: float, post: float, beta: float) -> float | None:
    """The α* above which an inconsistent feature satisfies sufficient mixing (C.6): αβ > (1 − α)·pre + α·post.

    α* = pre / (pre + β − post) if β > post ≥ 0; None if no α in [0, 1] satisfies it. With β < c/2, pre − post > c and
    post ≥ 0, α* is above 2/3.
    """
    if pre < 0 or beta <= post:
        return None
    return pre / (pre + beta - post)


def _targets(effective: Numbers, variances: Numbers) -> Numbers:
    """The singular values σ of these effective values q σ; 0 where the variance q is 0."""
    return tuple(value / variance if variance else 0.0 for value, variance in zip(effective, variances, strict=True))


def _mean(first: Numbers, second: Numbers, weight: float) -> Numbers:
    return tuple((1 - weight) * a + weight * b for a, b in zip(first, second, strict=True))
