"""Direct Preference Optimization (Rafailov et al., arXiv 2305.18290, Equation 7).

The loss of a pair is -log σ(β m), in nats. Its margin m = (log π(chosen) - log π_ref(chosen)) - (log π(rejected) -
log π_ref(rejected)) is in nats too: log-probabilities are summed over the predicted tokens of a sequence, not averaged, and no
label is smoothed. Pairs are int64 [2 · pairs, length] as in `objective`, each chosen response before the rejected one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from retain.lightning_modules.compiled import uncompiled
from retain.lightning_modules.families import body, head, logits_function
from retain.lightning_modules.objective import (
    IGNORE_INDEX,
    LossAndGradient,
    at_least_fp32,
    chunk_tokens,
    loss_and_gradient,
    model_inputs,
    next_token_losses,
    targets_of,
)
from retain.lightning_modules.shards import call_as_forward, reshard


@dataclass(frozen=True)
class Preferences:
    """What a model prefers on pairs, and by how much."""

    loss: float
    """The mean DPO loss, in nats per pair."""
    accuracy: float
    """The share of pairs with a margin above 0."""
    margin: float
    """The mean margin, in nats."""
    pairs: int


def margins(log_probabilities: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the margin of each pair: [pairs], nats. Both arguments: [2 · pairs], by sequence."""
    risen = log_probabilities - reference
    return risen[0::2] - risen[1::2]


def log_probabilities(model: nn.Module, pairs: torch.Tensor, end_of_text: int | None = None) -> torch.Tensor:
    """Return the log-probability of each sequence's predicted tokens: fp64 [2 · pairs]. Computes no gradient.

    end_of_text: as in `objective.summed_loss`.
    """
    return -next_token_losses(model, pairs, end_of_text, torch.float64)


def summed_preference_loss(
    model: nn.Module,
    pairs: torch.Tensor,
    reference: torch.Tensor,
    beta: float,
    loss_fn: LossAndGradient = loss_and_gradient,
    end_of_text: int | None = None,
) -> torch.Tensor:
    """Return the DPO loss summed over pairs, for training: a scalar in fp32 or better, nats.

    reference: the log-probabilities of the sequences at the start of the stage, fp64 [2 · pairs]. loss_fn, end_of_text: as in
    `objective.summed_loss`.
    """

    def loss(model: Any, pairs: torch.Tensor) -> torch.Tensor:
        hidden = body(model)(**model_inputs(pairs, end_of_text), use_cache=False).last_hidden_state
        trained = [parameter for parameter in head(model).parameters() if parameter.requires_grad]
        found: torch.Tensor = _SummedPreferenceLoss.apply(  # type: ignore[no-untyped-call]
            loss_fn, logits_function(model), beta, reference, hidden.flatten(0, 1), targets_of(pairs), *trained
        )
        return found

    return call_as_forward(model, loss, pairs)


class _SummedPreferenceLoss(torch.autograd.Function):
    """The loss, computed over chunks of tokens twice, so that no chunk's logits are kept.

    The first time gives the log-probabilities. They say by how much each pair's loss changes with them, and the second time
    gives the gradient. The loss is a sum, so backward only scales the gradient by one number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss_fn: LossAndGradient,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        beta: float,
        reference: torch.Tensor,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *trained: nn.Parameter,
    ) -> torch.Tensor:
        size = chunk_tokens(hidden)
        # 1. The log-probability of each sequence, and the margin of each pair.
        losses = [
            functional.cross_entropy(
                at_least_fp32(logits_of(part)), wanted, ignore_index=IGNORE_INDEX, reduction="none"
            ).double()
            for part, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        ]
        found = margins(-torch.cat(losses).view(len(reference), -1).sum(dim=1), reference)
        total = functional.softplus(-beta * found).sum()
        # 2. The derivative of the loss by the cross-entropy of each token: β σ(-β m) of the chosen response, and its negative.
        pull = beta * torch.sigmoid(-beta * found)
        by_sequence = torch.stack((pull, -pull), dim=1).view(-1, 1)
        kind = torch.promote_types(hidden.dtype, torch.float32)
        weights = by_sequence.to(kind).expand(-1, len(hidden) // len(reference)).reshape(-1, 1)
        # 3. The gradient.
        hidden_gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in trained]
        for first in range(0, len(hidden), size):
            part = hidden[first : first + size].detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(part)
            _, gradient = loss_fn(logits.detach(), targets[first : first + size])
            weighted = (gradient * weights[first : first + size]).to(gradient.dtype)
            part_gradient, *shares = torch.autograd.grad(logits, [part, *trained], weighted)
            hidden_gradient[first : first + size] = part_gradient
            for accumulated, share in zip(gradients, shares, strict=True):
                accumulated += share
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total.to(kind)

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any) -> Any:
        hidden, *gradients = (gradient * output_gradients[0] for gradient in ctx.saved_tensors)
        return None, None, None, None, hidden, None, *gradients


def no_sums() -> torch.Tensor:
    """Return the sums with which `heldout_preferences` begins, fp64 [3]: losses, pairs with a margin above 0, margins."""
    return torch.zeros(3, dtype=torch.float64)


@torch.no_grad()
def heldout_preferences(
    model: nn.Module,
    pairs: torch.Tensor,
    reference: torch.Tensor,
    beta: float,
    device: torch.device,
    bf16: bool,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 8,
    end_of_text: int | None = None,
    between: Callable[[int], None] = lambda done: None,
    done: int = 0,
    sums: torch.Tensor | None = None,
) -> Preferences:
    """Return what a model prefers on held-out pairs, each once, over all ranks.

    pairs, reference: the whole split on every rank. batch_size: in pairs. between: called before each batch with the number of
    this rank's pairs that are done. Other arguments as in `objective.heldout_loss`; never compiled, like it.
    """
    was_training = model.training
    model.eval()
    both = pairs.view(-1, 2, pairs.shape[1])
    mine, known = both[rank::world], reference.view(-1, 2)[rank::world]
    sums = no_sums() if sums is None else sums
    # Every rank makes the same number of calls, because a sharded model gathers its weights in each call.
    try:
        for first in range(done, -(-len(both) // world), batch_size):
            between(first)
            block = mine[first : first + batch_size]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16), uncompiled(model):
                one = (block if len(block) else both[:1]).flatten(0, 1).to(device)
                found = log_probabilities(model, one, end_of_text).cpu()
            if len(block):
                margin = margins(found, known[first : first + batch_size].flatten())
                parts = functional.softplus(-beta * margin).sum(), (margin > 0).double().sum(), margin.sum()
                sums += torch.stack(parts)
    finally:
        model.train(was_training)
        reshard(model)
    if world > 1:
        shared = sums.to(device)
        distributed.all_reduce(shared)
        sums = shared.cpu()
    loss, accuracy, margin = (sums / len(both)).tolist()
    return Preferences(loss, accuracy, margin, len(both))
