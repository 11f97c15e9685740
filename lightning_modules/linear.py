"""The two-layer linear model θ = W1·W2 of the paper's Section 5, and gradient descent on its exact population loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retain.sweeps.schema.linear_theory import Task

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class LinearModel:
    """W1 and W2, and the shared singular vectors: feature i is column i of U and of V. All [n, n], float64."""

    w1: Tensor
    w2: Tensor
    u: Tensor
    v: Tensor

    @property
    def theta(self) -> Tensor:
        return self.w1 @ self.w2

    @property
    def strengths(self) -> Tensor:
        """uᵢᵀ θ vᵢ of every feature, [n]."""
        return (self.u.T @ self.theta @ self.v).diagonal()

    def save(self, folder: Path) -> None:
        """Write the four matrices as safetensors."""
        folder.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in vars(self).items()}, folder / WEIGHTS)


def load_linear(folder: Path) -> LinearModel:
    return LinearModel(**load_file(folder / WEIGHTS))


def start_linear(features: int, start: float, seed: int) -> LinearModel:
    """U and V drawn at random, and W1 = exp(−T)·U, W2 = exp(−T)·Vᵀ, with T the start.

    That is exp(−T)·I in the coordinates of the features, as the theorems need it: from exp(−T)·I in others, features
    whose singular vectors overlap do not move independently.
    """
    draw = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(features, features, generator=draw, dtype=torch.float64))[0] for _ in range(2))
    small = torch.exp(torch.tensor(-start, dtype=torch.float64))
    return LinearModel(small * u, small * v.T, u, v)


def population_loss(model: LinearModel, task: Task) -> Tensor:
    """E‖y − θx‖² = tr((θ − A) C (θ − A)ᵀ), exact, a scalar."""
    _, covariance = _moments(model, task)
    target = model.u @ torch.diag(_tensor(task.targets)) @ model.v.T
    error = model.theta - target
    return ((error @ covariance) * error).sum()


def descend(
    model: LinearModel, task: Task, lr: float, steps: int, regularisation: float = 0.0, every: int = 1
) -> Iterator[tuple[int, LinearModel]]:
    """Gradient descent on ½ E‖y − θx‖² + ½ λ_reg ‖θ − θ_0‖², from θ_0 = W1·W2: the model before the first step, after
    every `every` steps and after the last, each with the number of steps so far."""
    # A plain loop: a step is four products of small matrices, ten microseconds, to which a Trainer's own loop would add
    # a hundred times as much; the gradient is written out for the same reason (the tests hold it against autograd).
    cross, covariance = _moments(model, task)
    cross = cross + regularisation * model.theta
    covariance = covariance + regularisation * torch.eye(len(covariance), dtype=covariance.dtype)
    w1, w2 = model.w1, model.w2
    yield 0, model
    for step in range(1, steps + 1):
        gradient = torch.addmm(cross, w1, w2 @ covariance, beta=-1)
        w1, w2 = torch.addmm(w1, gradient, w2.T, alpha=-lr), torch.addmm(w2, w1.T, gradient, alpha=-lr)
        if step % every == 0 or step == steps:
            yield step, replace(model, w1=w1, w2=w2)


def _moments(model: LinearModel, task: Task) -> tuple[Tensor, Tensor]:
    """E[y xᵀ] and E[x xᵀ], each [n, n]."""
    cross = model.u @ torch.diag(_tensor(task.effective_values)) @ model.v.T
    return cross, model.v @ torch.diag(_tensor(task.variances)) @ model.v.T


def _tensor(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
