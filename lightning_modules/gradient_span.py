"""The share of one task's gradient that lies in the span of another task's gradients, at the same weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from retain.lightning_modules.objective import predictions, summed_loss

CHUNK = 2**18
"""Coordinates of each gradient that are multiplied in fp64 at a time."""
MIN_ENERGY = 1e-10
"""Directions with less than this share of the strongest direction's energy are rounding errors."""


@dataclass(frozen=True)
class Sketch:
    """A seeded linear map of gradients to `size` numbers; the identity if `size` is None.

    A count-sketch (Charikar, Chen and Farach-Colton, 2002): every coordinate is added to one of `size` sums, with a random
    sign. Coordinates are taken in blocks of `size`, each rotated by a random shift: two coordinates of one block never
    share a sum, and two of different blocks do with probability 1 / size. Inner products of unit vectors are preserved with
    a standard deviation of at most √(2 / size), 0.6% at 65,536. A gradient orthogonal to the span of m others appears to
    have a share of about m / size in it.
    """

    size: int | None
    seed: int = 0

    def __call__(self, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the sketch of a vector given in parts: fp32 on the CPU, [size], or the whole vector for the identity.

        Sketches are comparable only if every vector is cut into parts of the same sizes.
        """
        if self.size is None:
            return torch.cat([part.detach().float().flatten().cpu() for part in parts])
        sums = torch.zeros(self.size, dtype=torch.float64)
        draw = torch.Generator().manual_seed(self.seed)
        for part in parts:
            sums = sums.to(part.device)
            for block in torch.split(part.detach().flatten(), self.size):
                shift = int(torch.randint(self.size, (), generator=draw))
                signs = torch.empty(len(block), dtype=torch.int8).random_(2, generator=draw).mul_(2).sub_(1)
                signed = block.double() * signs.to(block.device)
                before_end = min(len(block), self.size - shift)
                sums[shift : shift + before_end] += signed[:before_end]
                sums[: len(block) - before_end] += signed[before_end:]
        return sums.float().cpu()


@dataclass(frozen=True)
class SpanShare:
    """‖P g‖² / ‖g‖² of each measured gradient g, where P projects onto the span; and the span's dimension."""

    shares: tuple[float, ...]
    rank: int

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares)


def share_in_span(
    model: nn.Module,
    spanning: Sequence[torch.Tensor],
    measured: Sequence[torch.Tensor],
    sketch: Sketch,
    micro_batch: int,
    end_of_text: int | None = None,
) -> SpanShare:
    """Return the share of each gradient of the batches `measured` in the span of the gradients of the batches `spanning`.

    A batch is int64 [sequences, length]. end_of_text: as in `summed_loss`.

    A batch's gradient is that of the mean next-token loss with respect to all weights, without dropout, accumulated over
    `micro_batch` sequences at a time. Memory: one gradient of the model, and one sketch a batch.
    """

    def gradient(batch: torch.Tensor) -> torch.Tensor:
        return batch_gradient(model, batch, sketch, micro_batch, end_of_text)

    basis = span_basis(torch.stack([gradient(batch) for batch in spanning]))
    shares = tuple(share_inside(basis, gradient(batch)) for batch in measured)
    return SpanShare(shares, len(basis))


def batch_gradient(
    model: nn.Module, batch: torch.Tensor, sketch: Sketch, micro_batch: int, end_of_text: int | None = None
) -> torch.Tensor:
    """Return the sketched gradient of one batch's mean next-token loss (nats per token); clears the model's gradients."""
    was_training = model.training
    model.eval()
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    count = max(1, int(predictions(batch)))
    for part in torch.split(batch, micro_batch):
        (summed_loss(model, part.to(device), end_of_text=end_of_text) / count).backward()  # type: ignore[no-untyped-call]
    gradient = sketch(
        parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for parameter in model.parameters()
    )
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return gradient


def span_basis(gradients: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis [rank, d] of the span of gradients [m, d], each scaled to unit length.

    Computed from the eigenvectors of the m × m matrix of inner products, so memory is one more copy of the gradients.
    """
    lengths: torch.Tensor = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    directions: torch.Tensor = gradients[lengths > 0] / lengths[lengths > 0, None].float()
    if not len(directions):
        return directions
    energies, vectors = torch.linalg.eigh(_products(directions))
    kept = energies > MIN_ENERGY * energies[-1]
    weights: torch.Tensor = vectors[:, kept] / energies[kept].sqrt()
    return weights.T.float() @ directions


def share_inside(basis: torch.Tensor, gradient: torch.Tensor) -> float:
    """Return ‖P g‖² / ‖g‖² in [0, 1], where P projects onto an orthonormal basis; 0 for a zero gradient."""
    whole = float(gradient.double().square().sum())
    if whole == 0:
        return 0.0
    inside = float((basis @ gradient).double().square().sum())
    return min(1.0, inside / whole)


def _products(directions: torch.Tensor) -> torch.Tensor:
    """Return all inner products, [m, m], summed in fp64 over blocks of coordinates."""
    products = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for block in torch.split(directions, CHUNK, dim=1):
        exact = block.double()
        products += exact @ exact.T
    return products
