"""The two-layer linear model θ = W1·W2 of the paper's Section 5, and gradient descent on its exact population loss.

It is written in numpy: a stage takes a second, and importing torch takes several.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from retain.sweeps.base.files import share
from retain.sweeps.schema.linear.closed_forms import Task

WEIGHTS = "model.safetensors"
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class LinearModel:
    """W1 and W2, and the shared singular vectors: feature i is column i of U and of V. All [n, n]."""

    w1: Matrix
    w2: Matrix
    u: Matrix
    v: Matrix

    @property
    def theta(self) -> Matrix:
        """θ = W1·W2, [n, n]."""
        return self.w1 @ self.w2

    @property
    def strengths(self) -> Matrix:
        """uᵢᵀ θ vᵢ of every feature, [n]."""
        return np.diagonal(self.u.T @ self.theta @ self.v)

    def save(self, folder: Path) -> None:
        """Write the four matrices as safetensors."""
        folder.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, folder / WEIGHTS)
        share(folder / WEIGHTS)


def load_linear(folder: Path) -> LinearModel:
    """Read the model that `LinearModel.save` wrote."""
    return LinearModel(**load_file(folder / WEIGHTS))


def start_linear(features: int, start: float, seed: int) -> LinearModel:
    """Draw U and V at random, and set W1 = exp(−T)·U and W2 = exp(−T)·Vᵀ, with T the start.

    That is exp(−T)·I in the coordinates of the features, as the theorems need it: from exp(−T)·I in other coordinates, features
    with overlapping singular vectors do not move independently.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    u, v = (np.linalg.qr(draw.standard_normal((features, features)))[0] for _ in range(2))
    small = np.exp(-start)
    return LinearModel(small * u, small * v.T, u, v)


def population_loss(model: LinearModel, task: Task) -> float:
    """The exact loss E‖y − θx‖² = tr((θ − A) C (θ − A)ᵀ)."""
    _, covariance = _moments(model, task)
    error = model.theta - model.u @ np.diag(task.targets) @ model.v.T
    # Rounding can take the sum just below 0. NaN stays NaN.
    return max(float(((error @ covariance) * error).sum()), 0.0)


def descend(
    model: LinearModel, task: Task, lr: float, steps: int, regularisation: float = 0.0, every: int = 1
) -> Iterator[tuple[int, LinearModel]]:
    """Do gradient descent on ½ E‖y − θx‖² + ½ λ_reg ‖θ − θ_0‖², from θ_0 = W1·W2.

    Yields the number of steps so far and the model: before the first step, after every `every` steps, and after the last.
    """
    # The gradient is written out, as each step is only four products of small matrices; a test holds it against autograd.
    cross, covariance = _moments(model, task)
    cross = cross + regularisation * model.theta
    covariance = covariance + regularisation * np.eye(len(covariance))
    w1, w2 = model.w1, model.w2
    yield 0, model
    for step in range(1, steps + 1):
        gradient = cross - w1 @ (w2 @ covariance)
        w1, w2 = w1 + lr * (gradient @ w2.T), w2 + lr * (w1.T @ gradient)
        if step % every == 0 or step == steps:
            yield step, replace(model, w1=w1, w2=w2)


def _moments(model: LinearModel, task: Task) -> tuple[Matrix, Matrix]:
    """E[y xᵀ] and E[x xᵀ], each [n, n]."""
    cross: Any = model.u @ np.diag(task.effective_values) @ model.v.T
    return cross, model.v @ np.diag(task.variances) @ model.v.T
