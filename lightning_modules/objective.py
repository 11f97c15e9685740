"""The training and evaluation loss of every stage: mean next-token cross-entropy, nats per token.

Sequences are int64 [sequences, length]. A token that is not predicted is held as its complement, `~token`: it counts in no
loss, and is a token like any other for those after it.

Logits are computed in chunks of a few hundred or thousand tokens and never kept: with a vocabulary of 49,152, the logits of
8 sequences of 1,024 tokens would take 1.6 GB in fp32, and their gradient as much again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

from retain.lightning_modules.compiled import uncompiled
from retain.lightning_modules.families import body, head, logits_function
from retain.lightning_modules.shards import call_as_forward, reshard

IGNORE_INDEX = -100
"""The target of a token that has none."""
CHUNK_TOKENS = {"cpu": 512}
"""Tokens whose logits exist at once, by device type. On a CPU, few enough for its caches."""
DEFAULT_CHUNK_TOKENS = 4096
"""For all other devices: enough to keep a GPU busy."""

LossAndGradient = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Maps logits and targets to the summed loss and its gradient with respect to the logits."""


@dataclass(frozen=True)
class HeldoutLoss:
    """The loss on one split, in nats per predicted token, and the number of predicted tokens."""

    loss: float
    tokens: int
    by_value: tuple[tuple[float, int], ...] = ()
    """For each value of the labels, the summed loss (nats) of the tokens that have it, and their number."""


def loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy (nats) of all tokens with a target, and its gradient with respect to the logits.

    logits: [tokens, vocabulary]; targets: int64 [tokens], IGNORE_INDEX for none. The loss is a scalar in fp32 or better, the
    gradient has the shape and the type of the logits.
    """
    # Autograd of cross_entropy would pass over the vocabulary twice more: once to compute the exponentials again, once to
    # sum rows that are 0 except at the target.
    exact = at_least_fp32(logits)
    counts = (targets != IGNORE_INDEX).to(exact.dtype)
    highest = exact.amax(dim=1, keepdim=True)
    exponentials = (exact - highest).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    rows, columns = torch.arange(len(targets), device=targets.device), targets.clamp(min=0)
    losses = total.log().squeeze(1) - (exact[rows, columns] - highest.squeeze(1))
    gradient = exponentials.mul_(counts[:, None] / total).to(logits.dtype)
    gradient[rows, columns] = (torch.expm1(-losses) * counts).to(logits.dtype)
    return (losses * counts).sum(), gradient


@cache
def compiled_loss_and_gradient() -> LossAndGradient:
    """Return `loss_and_gradient`, compiled at first use."""
    return torch.compile(loss_and_gradient, dynamic=False)


def summed_loss(
    model: nn.Module,
    sequences: torch.Tensor,
    loss_fn: LossAndGradient = loss_and_gradient,
    end_of_text: int | None = None,
) -> torch.Tensor:
    """Return the summed cross-entropy of all predictions, for training: a scalar in fp32, nats.

    sequences: int64 [sequences, length], with at most length - 1 predictions each. loss_fn: `loss_and_gradient`, or a compiled
    one. end_of_text: the token that ends a document, if tokens attend within their own document only.
    """

    def loss(model: Any, sequences: torch.Tensor) -> torch.Tensor:
        inputs = model_inputs(sequences, end_of_text)
        hidden = body(model)(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        trained = [parameter for parameter in head(model).parameters() if parameter.requires_grad]
        found: torch.Tensor = _SummedLoss.apply(
            loss_fn, logits_function(model), hidden, targets_of(sequences), *trained
        )  # type: ignore[no-untyped-call]
        return found

    return call_as_forward(model, loss, sequences)


def next_token_losses(
    model: nn.Module, sequences: torch.Tensor, end_of_text: int | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the summed cross-entropy of each sequence over its predictions: [sequences], nats, summed in this type.

    Arguments as in `summed_loss`. Computes no gradient.
    """
    return token_losses(model, sequences, end_of_text).sum(dim=1, dtype=dtype)


@torch.no_grad()
def token_losses(model: nn.Module, sequences: torch.Tensor, end_of_text: int | None = None) -> torch.Tensor:
    """Return the cross-entropy of the token after each token: fp32 [sequences, length], nats; 0 where none is predicted.

    Arguments as in `summed_loss`. Computes no gradient.
    """

    def losses(model: Any, sequences: torch.Tensor) -> torch.Tensor:
        inputs = model_inputs(sequences, end_of_text)
        hidden: torch.Tensor = body(model)(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        logits_of = logits_function(model)
        size = chunk_tokens(hidden)
        chunks = zip(torch.split(hidden, size), torch.split(targets_of(sequences), size), strict=True)
        found = [
            functional.cross_entropy(
                at_least_fp32(logits_of(hidden)), targets, ignore_index=IGNORE_INDEX, reduction="none"
            )
            for hidden, targets in chunks
        ]
        return torch.cat(found).view(len(sequences), -1)

    return call_as_forward(model, losses, sequences)


class _SummedLoss(torch.autograd.Function):
    """The loss summed over all chunks. Forward computes the gradient too, so that each chunk's logits are freed at once.

    The loss is a sum, so backward only scales the gradient by one number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss_fn: LossAndGradient,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        targets: torch.Tensor,
        *trained: nn.Parameter,
    ) -> torch.Tensor:
        total = at_least_fp32(hidden.new_zeros(()))
        hidden_gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in trained]
        size = chunk_tokens(hidden)
        for first in range(0, len(hidden), size):
            part = hidden[first : first + size].detach().requires_grad_()
            with torch.enable_grad():
                logits = logits_of(part)
            loss, gradient = loss_fn(logits.detach(), targets[first : first + size])
            part_gradient, *shares = torch.autograd.grad(logits, [part, *trained], gradient)
            hidden_gradient[first : first + size] = part_gradient
            for accumulated, share in zip(gradients, shares, strict=True):
                accumulated += share
            total += loss
        ctx.save_for_backward(hidden_gradient, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any) -> Any:
        hidden, *gradients = (gradient * output_gradients[0] for gradient in ctx.saved_tensors)
        return None, None, hidden, None, *gradients


def targets_of(sequences: torch.Tensor) -> torch.Tensor:
    """Return the next token of each token, [tokens]; IGNORE_INDEX where it is not predicted.

    The last token of a sequence has target IGNORE_INDEX. It is not removed, because matrix products of odd sizes are slow.
    """
    predicted = sequences.masked_fill(sequences < 0, IGNORE_INDEX)
    return functional.pad(predicted[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()


def predictions(sequences: torch.Tensor) -> torch.Tensor:
    """Return the number of predicted tokens of sequences: an int64 scalar. The first token of a sequence is never predicted."""
    return (sequences[:, 1:] >= 0).sum()


def model_inputs(sequences: torch.Tensor, end_of_text: int | None) -> dict[str, torch.Tensor]:
    """Return the arguments of a model: the token ids, and the positions in each document if tokens attend within documents.

    transformers takes positions that begin again for documents packed into one sequence, and masks each from the others.
    """
    tokens = torch.where(sequences < 0, ~sequences, sequences)
    if end_of_text is None:
        return {"input_ids": tokens}
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    # A document begins after each end of text. `begins` is the latest beginning up to each token.
    begins = functional.pad(torch.where(tokens[:, :-1] == end_of_text, places[:, 1:], 0), (1, 0)).cummax(dim=1).values
    return {"input_ids": tokens, "position_ids": places - begins}


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32, or in its own type if that is more exact."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def chunk_tokens(hidden: torch.Tensor) -> int:
    """Return the number of tokens whose logits exist at once."""
    return CHUNK_TOKENS.get(hidden.device.type, DEFAULT_CHUNK_TOKENS)


def no_sums(labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Return the sums with which `heldout_loss` begins, in fp64 and nats: of all predictions, and by value [values]."""
    values = 0 if labels is None else int(labels.max()) + 1
    return {"loss": torch.zeros((), dtype=torch.float64), "by_value": torch.zeros(values, dtype=torch.float64)}


@torch.no_grad()
def heldout_loss(
    model: nn.Module,
    sequences: torch.Tensor,
    device: torch.device,
    bf16: bool,
    rank: int = 0,
    world: int = 1,
    batch_size: int = 16,
    end_of_text: int | None = None,
    between: Callable[[int], None] = lambda done: None,
    labels: torch.Tensor | None = None,
    done: int = 0,
    sums: Mapping[str, torch.Tensor] | None = None,
) -> HeldoutLoss:
    """Return the mean loss over all predictions of a held-out split, each once, summed in fp64 over all ranks.

    sequences: int64 [sequences, length], the whole split on every rank. end_of_text: as in `summed_loss`. between: called
    before each batch with the number of this rank's sequences that are done; it may raise to stop. Never compiled, so that
    runs trained with and without compiling are evaluated with the same arithmetic. labels: the number of the value of each
    token, from 0 on, [sequences, length]; the loss is then also given by value, and is the same as without. sums: those of
    this rank's first `done` sequences, to continue an evaluation that stopped before a batch; the rest is added in place.
    """
    was_training = model.training
    model.eval()
    sums = no_sums(labels) if sums is None else sums
    total, parts = sums["loss"], sums["by_value"]
    mine = sequences[rank::world]
    own_labels = None if labels is None else labels[rank::world]
    # Every rank makes the same number of calls, because a sharded model gathers its weights in each call.
    try:
        for first in range(done, -(-len(sequences) // world), batch_size):
            between(first)
            block = mine[first : first + batch_size]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16), uncompiled(model):
                losses = token_losses(model, (block if len(block) else sequences[:1]).to(device), end_of_text)
            if len(block):
                total += losses.sum(dim=1).double().sum().cpu()
                if own_labels is not None:
                    parts += sums_by_label(losses.cpu(), own_labels[first : first + batch_size], len(parts))
    finally:
        model.train(was_training)
        reshard(model)
    if world > 1:
        shared = total.to(device)
        distributed.all_reduce(shared)
        total = shared.cpu()
        if len(parts):
            shared = parts.to(device)
            distributed.all_reduce(shared)
            parts = shared.cpu()
    tokens = int(predictions(sequences))
    counts: list[int] = []
    if labels is not None:
        predicted = functional.pad((sequences[:, 1:] >= 0).double(), (0, 1))
        counts = [round(count) for count in sums_by_label(predicted, labels, len(parts)).tolist()]
    return HeldoutLoss(total.item() / tokens, tokens, tuple(zip(parts.tolist(), counts, strict=True)))


def sums_by_label(amounts: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the sums over predictions by the label of the predicted token, one after the other: fp64 [count].

    amounts: that of the prediction of the token after each token, [sequences, length]. labels: [sequences, length], each below
    `count`. On the CPU.
    """
    targets = functional.pad(labels[:, 1:].long(), (0, 1)).flatten()  # the last token of a sequence predicts nothing
    return torch.zeros(count, dtype=torch.float64).index_add_(0, targets, amounts.flatten().double())
