"""The loss that every stage trains on and is judged by: mean next-token cross-entropy, nats per token."""

from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn import functional

from lightning_modules.shards import reshard


@dataclass(frozen=True)
class HeldoutLoss:
    """Of one split: nats per predicted token, and the predicted tokens behind it."""

    loss: float
    tokens: int


def next_token_losses(model: nn.Module, sequences: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of each sequence over its length - 1 predictions.

    sequences: int64 [sequences, length]. Returns fp32 [sequences], nats.
    """
    logits = model(input_ids=sequences).logits[:, :-1]
    losses = functional.cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
    return losses.view(len(sequences), -1).sum(dim=1)


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
    """The mean over all sequences of a held-out split, each once, summed in fp64 over all ranks."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    mine = sequences[rank::world]
    # Every rank makes the same number of calls: a sharded model gathers its weights in each.
    for first in range(0, -(-len(sequences) // world), at_a_time):
        block = mine[first : first + at_a_time]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
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
