"""How much of one task's gradient lies in the subspace that another task's gradients span, at the same weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from retain.lightning_modules.objective import summed_loss

CHUNK = 2**18
"""Numbers of each gradient that are multiplied in fp64 at a time."""
FAINTEST = 1e-10
"""Directions whose energy is below this share of the strongest one's are rounding, not directions."""


@dataclass(frozen=True)
class Sketch:
    """A seeded linear map of gradients to `size` numbers; the identity where `size` is None.

    A count-sketch (Charikar, Chen and Farach-Colton, 2002): every coordinate is added to one of `size` sums, with a random
    sign. Coordinates are taken in blocks of `size`, each block turned round by a random shift, so that two of one block
    never meet and others do with a chance of 1 / size. Inner products of unit vectors keep their value with a standard
    deviation of at most √(2 / size), 0.6% at 65,536. A gradient outside of the span of m others seems to lie inside it
    with a share of about m / size.
    """

    size: int | None
    seed: int = 0

    def __call__(self, parts: Iterable[torch.Tensor]) -> torch.Tensor:
        """The parts of one vector, cut the same way at every call, as fp32 on the CPU: [size], or [all] for the identity."""
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
    """‖P g‖² / ‖g‖² of each gradient g asked about, P the projection onto the span; and the span's dimension."""

    shares: tuple[float, ...]
    rank: int

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares)


def share_in_span(
    model: nn.Module,
    spanning: Sequence[torch.Tensor],
    asked: Sequence[torch.Tensor],
    sketch: Sketch,
    at_a_time: int,
) -> SpanShare:
    """The share of the gradients of the batches `asked` inside the span of those of the batches `spanning`.

    A batch: int64 [sequences, length]; its gradient is that of the mean next-token loss over all weights, without dropout,
    from `at_a_time` sequences at a time. Kept in memory: one gradient of the model, and a sketch for each batch.
    """
    basis = span_of(torch.stack([batch_gradient(model, batch, sketch, at_a_time) for batch in spanning]))
    shares = tuple(share_inside(basis, batch_gradient(model, batch, sketch, at_a_time)) for batch in asked)
    return SpanShare(shares, len(basis))


def batch_gradient(model: nn.Module, batch: torch.Tensor, sketch: Sketch, at_a_time: int) -> torch.Tensor:
    """The sketched gradient of the mean next-token loss (nats per token) of one batch; the model's own are cleared."""
    was_training = model.training
    model.eval()
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    predictions = batch.shape[0] * (batch.shape[1] - 1)
    for part in torch.split(batch, at_a_time):
        (summed_loss(model, part.to(device)) / predictions).backward()  # type: ignore[no-untyped-call]
    gradient = sketch(
        parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for parameter in model.parameters()
    )
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return gradient


def span_of(gradients: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis, [rank, d], of the span of gradients, [m, d], each taken at unit length.

    From the eigenvectors of their m × m products, so that it needs no more than a second copy of them.
    """
    lengths: torch.Tensor = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    directions: torch.Tensor = gradients[lengths > 0] / lengths[lengths > 0, None].float()
    if not len(directions):
        return directions
    energies, vectors = torch.linalg.eigh(_products(directions))
    kept = energies > FAINTEST * energies[-1]
    weights: torch.Tensor = vectors[:, kept] / energies[kept].sqrt()
    return weights.T.float() @ directions


def share_inside(basis: torch.Tensor, gradient: torch.Tensor) -> float:
    """‖P g‖² / ‖g‖², in [0, 1]; 0 for a gradient that is 0."""
    whole = float(gradient.double().square().sum())
    if whole == 0:
        return 0.0
    inside = float((basis @ gradient).double().square().sum())
    return min(1.0, inside / whole)


def _products(directions: torch.Tensor) -> torch.Tensor:
    """All inner products, [m, m], summed in fp64 over blocks of coordinates."""
    products = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for block in torch.split(directions, CHUNK, dim=1):
        exact = block.double()
        products += exact @ exact.T
    return products
