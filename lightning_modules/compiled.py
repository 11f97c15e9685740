"""torch.compile of the training step: each decoder layer, the final norm, and the loss with its gradient.

A layer is compiled once and its code serves all layers, so compiling takes as long for 30 layers as for 4. Hooks around a
layer, which gather its weights if it is sharded, stay outside the compiled code; the dropout hooks are inside.
"""

from functools import cache

import torch
from transformers import PreTrainedModel

from retain.lightning_modules.families import final_norm, layers
from retain.lightning_modules.objective import LossAndGradient, loss_and_gradient
from retain.lightning_modules.torch_internals import clear_damaged_builds, configure_compiler


def compile_layers(model: PreTrainedModel) -> None:
    """Compile every layer and the final norm, forward and backward, at first use and for the shapes they are used with.

    Ask `why_not_compiled` first: raises UnsupportedTorchError if this release of torch lacks what compiling needs.
    """
    configure_compiler()
    clear_damaged_builds()
    for part in (*layers(model), final_norm(model)):
        part.forward = torch.compile(part.forward, dynamic=False)


@cache
def compiled_loss_and_gradient() -> LossAndGradient:
    """Return `loss_and_gradient`, compiled at first use."""
    return torch.compile(loss_and_gradient, dynamic=False)


def why_not_compiled(device: torch.device) -> str | None:
    """Return in a few words why this machine cannot compile for a device; None if it can."""
    clear_damaged_builds()
    try:
        configure_compiler()
        torch.compile(lambda numbers: numbers.sin() + 1, dynamic=False)(torch.zeros(64, device=device))
    except Exception as error:  # a missing or broken toolchain may raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines or [type(error).__name__])[0]
    return None
