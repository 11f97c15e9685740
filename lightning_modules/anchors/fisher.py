"""The diagonal of the Fisher information of a model's weights, estimated on text (EWC: Kirkpatrick et al., arXiv 1612.00796).

It is the empirical one: the squared gradient of the log-likelihood of the text's own tokens. A sequence is one observation,
whose log-likelihood is the sum over its predicted tokens. The squares are summed over the sequences and divided by the number
of predicted tokens, so it is the information of one token: near a minimum of the loss, half of it times the squared distance
from the minimum is the rise of the loss in nats per token, as far as the diagonal says.
"""

from collections.abc import Iterator

import torch
from torch import nn

from retain.lightning_modules.compiled import uncompiled
from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.objective import predictions, summed_loss


def no_squares(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a zero for each weight, by the name of its parameter, in fp32 on its device."""
    return {name: torch.zeros_like(one, dtype=torch.float32) for name, one in trained_parameters(model)}


def add_squares(
    model: nn.Module,
    sequences: torch.Tensor,
    squares: dict[str, torch.Tensor],
    bf16: bool = False,
    end_of_text: int | None = None,
) -> Iterator[int]:
    """Add to `squares` the squared gradient of each sequence's log-likelihood; yield the number of sequences done after each.

    sequences: int64 [sequences, length]. sequences, end_of_text: as in `summed_loss`. Dropout is off. The sums
    depend on the order of the sequences only through rounding in fp32, so that a later call continues them exactly.
    """
    model.eval()
    device = next(model.parameters()).device
    for done, sequence in enumerate(sequences, start=1):
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16), uncompiled(model):
            loss = summed_loss(model, sequence[None].to(device), end_of_text=end_of_text)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained_parameters(model):
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                squares[name].addcmul_(gradient, gradient)
        yield done
    model.zero_grad(set_to_none=True)


def information_per_token(squares: dict[str, torch.Tensor], sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the Fisher information of one token from the sums over all sequences, on the CPU; they must predict a token."""
    count = int(predictions(sequences))
    return {name: (one / count).cpu() for name, one in squares.items()}
