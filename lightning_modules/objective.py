"""The loss that every stage trains on and is judged by: mean next-token cross-entropy, nats per token.

Logits are made for some hundred or thousand tokens at a time and never kept: with a vocabulary of 49,152 those of 8
sequences of 1,024 would take 1.6 GB in fp32, and their gradient as much again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from retain.lightning_modules.shards import in_forward, reshard

NO_TARGET = -100
CHUNK_TOKENS = {"cpu": 512}
"""Tokens whose logits exist at once: on a CPU few enough for its caches."""
CHUNK_TOKENS_ELSEWHERE = 4096
"""On a GPU enough to fill it."""

LossAndGradient = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class HeldoutLoss:
    """Of one split: nats per predicted token, and the predicted tokens behind it."""

    loss: float
    tokens: int


def loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy (nats) of tokens with a target, in fp32 at least, and its gradient, in the type of the logits.

    logits: [tokens, vocabulary]; targets: int64 [tokens].
    """
    # Autograd of cross_entropy would go over the vocabulary twice more: for the exponentials again, and to sum rows that
    # are 0 but for the target.
    exact = _at_least_fp32(logits)
    counts = (targets != NO_TARGET).to(exact.dtype)
    highest = exact.amax(dim=1, keepdim=True)
    exponentials = (exact - highest).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    rows, columns = torch.arange(len(targets), device=targets.device), targets.clamp(min=0)
    losses = total.log().squeeze(1) - (exact[rows, columns] - highest.squeeze(1))
    gradient = exponentials.mul_(counts[:, None] / total).to(logits.dtype)
    gradient[rows, columns] = (torch.expm1(-losses) * counts).to(logits.dtype)
    return (losses * counts).sum(), gradient


def summed_loss(
    model: nn.Module, sequences: torch.Tensor, of_logits: LossAndGradient = loss_and_gradient
) -> torch.Tensor:
    """Summed cross-entropy over all predictions, to be trained on: each sequence has length - 1 of them.

    sequences: int64 [sequences, length]. Returns a scalar in fp32, nats. of_logits: `loss_and_gradient`, or it compiled.
    """

    def loss(model: Any, sequences: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=sequences).last_hidden_state.flatten(0, 1)
        trained = [parameter for parameter in model.lm_head.parameters() if parameter.requires_grad]
        found: torch.Tensor = _SummedLoss.apply(of_logits, model.lm_head, hidden, _targets(sequences), *trained)  # type: ignore[no-untyped-call]
        return found

    return in_forward(model, loss, sequences)


@torch.no_grad()
def next_token_losses(model: nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of each sequence over its length - 1 predictions, without a gradient.

    sequences: int64 [sequences, length]. Returns fp32 [sequences], nats.
    """

    def losses(model: Any, sequences: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model.model(input_ids=sequences).last_hidden_state.flatten(0, 1)
        size = _chunk_tokens(hidden)
        chunks = zip(torch.split(hidden, size), torch.split(_targets(sequences), size), strict=True)
        found = [
            functional.cross_entropy(
                _at_least_fp32(model.lm_head(hidden)), targets, ignore_index=NO_TARGET, reduction="none"
            )
            for hidden, targets in chunks
        ]
        return torch.cat(found).view(len(sequences), -1).sum(dim=1)

    return in_forward(model, losses, sequences)


class _SummedLoss(torch.autograd.Function):
    """The loss of all chunks, and the gradient of it at once, so that no chunk's logits outlive it.

    As the loss is a sum, the gradient that comes from above is one number for all of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        of_logits: LossAndGradient,
        head: nn.Module,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *trained: nn.Parameter,
    ) -> torch.Tensor:
        total = _at_least_fp32(hidden.new_zeros(()))
        hidden_gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in trained]
        size = _chunk_tokens(hidden)
        for first in range(0, len(hidden), size):
            part = hidden[first : first + size].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            loss, gradient = of_logits(logits.detach(), targets[first : first + size])
            found = torch.autograd.grad(logits, [part, *trained], gradient)
            hidden_gradient[first : first + size] = found[0]
            for gathered, share in zip(gradients, found[1:], strict=True):
                gathered += share
            total += loss
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        hidden, *gradients = (gradient * above[0] for gradient in ctx.saved_tensors)
        return None, None, hidden, None, *gradients


def _targets(sequences: torch.Tensor) -> torch.Tensor:
    """The next token of each, [tokens]; a sequence's last token has none, but stays, as odd sizes multiply slowly."""
    return functional.pad(sequences[:, 1:], (0, 1), value=NO_TARGET).flatten()


def _at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _chunk_tokens(hidden: torch.Tensor) -> int:
    return CHUNK_TOKENS.get(hidden.device.type, CHUNK_TOKENS_ELSEWHERE)


@torch.no_grad()
def heldout_loss(
    model: nn.Module,
    sequences: torch.Tensor,
    device: torch.device,
    bf16: bool,
    rank: int = 0,
    world: int = 1,
    at_a_time: int = 16,
) -> HeldoutLoss:
    """The mean over all sequences of a held-out split, each once, summed in fp64 over all ranks.

    Never compiled, so that runs that were trained with and without compiling are judged by the same arithmetic.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    mine = sequences[rank::world]
    # Every rank makes the same number of calls: a sharded model gathers its weights in each.
    for first in range(0, -(-len(sequences) // world), at_a_time):
        block = mine[first : first + at_a_time]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16), torch.compiler.set_stance("force_eager"):
            losses = next_token_losses(model, (block if len(block) else sequences[:1]).to(device))
        if len(block):
            total += losses.double().sum().cpu()
    model.train(was_training)
    reshard(model)
    if world > 1:
        shared = total.to(device)
        distributed.all_reduce(shared)
        total = shared.cpu()
    tokens = sequences.shape[0] * (sequences.shape[1] - 1)
    return HeldoutLoss(total.item() / tokens, tokens)
