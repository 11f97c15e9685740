"""The parts of a model, found by the row of its family in the table."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from retain.sweeps.schema.families.table import FAMILIES, Family


def family_of(model: nn.Module) -> Family:
    """Return the row of a model's family."""
    return FAMILIES[model.config.model_type]  # type: ignore[union-attr, index]


def part(module: nn.Module, path: str) -> Any:
    """Return what is at a dotted path below a module."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


def body(model: nn.Module) -> nn.Module:
    """Return the decoder without its head."""
    found: nn.Module = part(model, family_of(model).body)
    return found


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers, in order."""
    return list(part(model, family_of(model).layers))


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm after the last layer."""
    found: nn.Module = part(model, family_of(model).norm)
    return found


def head(model: nn.Module) -> nn.Linear:
    """Return the output head; with LoRA, the adapted one."""
    found: nn.Linear = part(model, family_of(model).head)
    return found


def logits_function(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function from the last hidden states [tokens, width] to logits [tokens, vocabulary], as the model's own."""
    family, config, output = family_of(model), model.config, head(model)
    divisor = getattr(config, family.logit_divisor) if family.logit_divisor else None
    cap = getattr(config, family.soft_cap) if family.soft_cap else None
    if divisor is None and cap is None:
        return output

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = output(hidden)
        if divisor is not None:
            found = found / divisor
        return found if cap is None else torch.tanh(found / cap) * cap

    return logits
