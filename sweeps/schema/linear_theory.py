"""Closed forms of the two-layer linear model θ = W1·W2 (paper, Section 5 and Appendix C), a feature at a time.

Where W1 and W2 start as exp(−T) times the identity in the coordinates of the tasks' shared singular vectors, gradient
flow keeps the features apart. With s = uᵀ W1 W2 v the strength of one, σ its singular value in the task and q the variance
of its input,

    ds/dt = 2 s (q σ − q s),    s(0) = exp(−2T),

a logistic curve. q σ is the effective singular value: a feature is learned at about T / (q σ). Time is that of the flow on
half the squared loss, so one step of gradient descent at the rate lr lasts lr.

Where the theorems as printed and these solutions differ:
- The assumptions: with σ_post − σ_pre > c, β < c/2 and σ_pre ≥ 0, sufficient mixing (C.6) holds for no α. Read with
  |σ_post − σ_pre| > c it takes σ_post < β < σ_pre, and its threshold α* is above 2/3.
- 5.1: a specialised feature reaches β, not αβ, as its input has the variance α: αβ decides when, not how far.
- 5.2: so far above α* post-training finds the specialised features at β already, and moves them only near α*. A feature
  stays 0 that is exactly 0; from exp(−2T) it stays small while later stages are short against T / σ.
- 5.3: Δ falls from its unmixed value to 0 somewhat above α*, over a width in α that shrinks as 1/T.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """y = A x with A = U diag(targets) Vᵀ on inputs x ~ N(0, V diag(variances) Vᵀ), feature by feature."""

    targets: Numbers
    """The singular values σ; 0 where the input is always zero."""
    variances: Numbers

    @property
    def pulls(self) -> Numbers:
        """The effective singular values q σ, those of E[y xᵀ]."""
        return tuple(target * variance for target, variance in zip(self.targets, self.variances, strict=True))


@dataclass(frozen=True)
class Descent:
    """One stage: gradient flow on ½ E‖y − θx‖² + ½ λ_reg ‖θ − θ_0‖² for so long, from the θ_0 it finds."""

    task: Task
    time: float
    regularisation: float = 0.0


def mixture(pre: Task, post: Task, weight: float) -> Task:
    """(1 − α)·D_pre + α·D_post, with α the weight."""
    variances = _mean(pre.variances, post.variances, weight)
    pulls = _mean(pre.pulls, post.pulls, weight)
    targets = (pull / variance if variance else 0.0 for pull, variance in zip(pulls, variances, strict=True))
    return Task(tuple(targets), variances)


def held_at(task: Task, strengths: Sequence[float], regularisation: float) -> Task:
    """The task whose flow is that of `task` with the regulariser λ_reg‖θ − θ_0‖², where θ_0 has these strengths."""
    variances = tuple(variance + regularisation for variance in task.variances)
    pulls = (pull + regularisation * start for pull, start in zip(task.pulls, strengths, strict=True))
    targets = (pull / variance if variance else 0.0 for pull, variance in zip(pulls, variances, strict=True))
    return Task(tuple(targets), variances)


def initial_strengths(features: int, start: float) -> Numbers:
    """exp(−2T) for every feature, with T the start."""
    return (math.exp(-2 * start),) * features


def flow(descent: Descent, strengths: Sequence[float], time: float) -> Numbers:
    """The strengths of all features at a time of a stage that begins with `strengths`."""
    held = held_at(descent.task, strengths, descent.regularisation)
    return tuple(
        logistic(pull, variance, start, time)
        for pull, variance, start in zip(held.pulls, held.variances, strengths, strict=True)
    )


def flow_through(stages: Sequence[Descent], strengths: Sequence[float]) -> list[Numbers]:
    """The strengths at the end of each stage, one after the other."""
    ends = []
    for stage in stages:
        strengths = flow(stage, strengths, stage.time)
        ends.append(tuple(strengths))
    return ends


def logistic(pull: float, variance: float, start: float, time: float) -> float:
    """The solution of ds/dt = 2 s (pull − variance · s) with s(0) = start ≥ 0; a start of 0 stays 0."""
    if start == 0:
        return 0.0
    exponent = -2 * abs(pull) * time
    spread = start * variance * 2 * time * (math.expm1(exponent) / exponent if exponent else 1.0)
    # The same solution written twice, so that neither exponential grows.
    return start / (math.exp(exponent) + spread) if pull >= 0 else start * math.exp(exponent) / (1 + spread)


def learning_time(pull: float, variance: float, start: float) -> float:
    """When a feature has half of its final strength; infinite where it never has. About T / pull."""
    if pull <= 0 or pull / variance <= 2 * start:
        return math.inf if pull <= 0 else 0.0
    return math.log(pull / (variance * start) - 1) / (2 * pull)


def squared_loss(task: Task, strengths: Sequence[float]) -> float:
    """E‖y − θx‖² of a θ whose features have these strengths."""
    parts = zip(task.variances, strengths, task.targets, strict=True)
    return math.fsum(variance * (strength - target) ** 2 for variance, strength, target in parts)


def threshold(pre: float, post: float, beta: float) -> float | None:
    """α* above which αβ > (1 − α)·pre + α·post (sufficient mixing, C.6) for an inconsistent feature; None: no α in [0, 1].

    α* = pre / (pre + β − post), which takes β > post ≥ 0. With β < c/2 and pre − post > c it is above 2/3 wherever post ≥ 0.
    """
    if pre < 0 or beta <= post:
        return None
    return pre / (pre + beta - post)


def order_time(start: float, alpha: float, beta: float) -> float:
    """T / (α*β): when, at the threshold, the specialised and the inconsistent feature are both about to be learned.

    Stopped here, pretraining has the first above the threshold and the second below it.
    """
    return start / (alpha * beta)


def _mean(first: Numbers, second: Numbers, weight: float) -> Numbers:
    return tuple((1 - weight) * a + weight * b for a, b in zip(first, second, strict=True))
