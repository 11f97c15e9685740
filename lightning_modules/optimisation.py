"""How a stage updates its weights: the optimisers, in a table with one function a row, and the learning rate of each step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from retain.lightning_modules.models import parameter_groups

ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTS = (*ADAMW_MOMENTS, "momentum_buffer")
"""The tensors, of the shape of a parameter, that the optimisers keep for it: AdamW the first two, Muon the last."""
MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
"""Muon's settings, as its authors and torch have them. They are part of what `muon` means in a recipe."""


def optimizers_of(model: nn.Module, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """Return the optimisers that a recipe asks for; each trained parameter is in one of them."""
    return OPTIMIZERS[recipe.get("optimizer", "adamw")](model, recipe)


def adamw(model: nn.Module, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters (paper, Table 5)."""
    return [_adamw(parameter_groups(model, recipe["weight_decay"], recipe.get("decay", "matrices")), recipe)]


def muon(model: nn.Module, recipe: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the hidden layers; AdamW for embeddings, norms, biases and the head.

    Source: K. Jordan, "Muon: An optimizer for hidden layers in neural networks". Updates are scaled to the root mean square of
    AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate and one weight decay serve both optimisers.
    """
    ends = {id(parameter) for part in _ends(model) for parameter in part.parameters()}
    ours: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in parameter_groups(model, recipe["weight_decay"], recipe.get("decay", "matrices")):
        hidden = [one for one in group["params"] if one.dim() == 2 and id(one) not in ends]
        chosen = {id(parameter) for parameter in hidden}
        ours.append(group | {"params": hidden})
        others.append(group | {"params": [one for one in group["params"] if id(one) not in chosen]})
    matrices = torch.optim.Muon(
        [group for group in ours if group["params"]],
        lr=recipe["lr"],
        momentum=MOMENTUM,
        nesterov=True,
        ns_steps=NEWTON_SCHULZ_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )
    return [matrices, _adamw([group for group in others if group["params"]], recipe)]


def _adamw(groups: list[dict[str, Any]], recipe: Mapping[str, Any]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), fused=True)


def _ends(model: nn.Module) -> list[nn.Module]:
    """The embeddings, and the layer that predicts tokens."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
    return [
        *(part for part in model.modules() if isinstance(part, nn.Embedding)),
        *([head] if head is not None else []),
    ]


OPTIMIZERS: Mapping[str, Callable[[nn.Module, Mapping[str, Any]], list[torch.optim.Optimizer]]] = {
    "adamw": adamw,
    "muon": muon,
}
"""How to make the optimisers of each name that the field `optimizer` of a stage may have."""


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    floor: float,
    warmup: int,
    schedule: str | Mapping[str, int] = "cosine",
    rise: bool = False,
) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up to `peak`, then decay to `floor` at the last step.

    The default, a cosine, is the schedule of the paper's Table 5. schedule: cosine, linear, constant, or {"wsd": n}, which
    holds the peak and decays linearly over the last n steps. A floor above the peak, as in some rows of the paper's Table 8,
    is lowered to the peak, so that the learning rate stays at the peak after the warm-up; with `rise` it rises to the floor.
    """
    if not rise:
        floor = min(floor, peak)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    if isinstance(schedule, Mapping):
        left = min(1.0, (steps - 1 - step) / schedule["wsd"])
        return floor + (peak - floor) * left
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    if schedule == "linear":
        return floor + (peak - floor) * (1 - progress)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def rate_of_recipe(recipe: Mapping[str, Any], step: int) -> float:
    """Return the learning rate of a step of a recipe, counted from 0."""
    schedule, rise = recipe.get("schedule", "cosine"), recipe.get("floor") == "rise"
    return learning_rate(
        step, recipe["steps"], recipe["lr"], recipe["min_lr"], recipe["warmup"], schedule=schedule, rise=rise
    )
