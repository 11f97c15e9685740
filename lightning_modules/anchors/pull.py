"""The pull of an anchor towards the weights that a stage starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.shards import local_part, stored_rows


class Anchor:
    """A penalty on leaving the weights at the start of a stage: l2sp / 2 times the squared distance from them (L2-SP), and
    ewc / 2 times the squared distance of each weight times its Fisher information (EWC).

    Sources: Xuhong et al., "Explicit inductive bias for transfer learning with convolutional networks" (arXiv 1802.01483);
    Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796), Equation 3. It must be made
    while the model has its starting weights. Of sharded weights each rank keeps its rows.
    """

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], fisher: Path | None = None) -> None:
        """recipe: the entry `anchor` of a stage's recipe. fisher: the file of the Fisher information, for `ewc`."""
        self.strength: float = recipe.get("l2sp", 0.0)
        self.start = {name: local_part(one.detach()).clone() for name, one in trained_parameters(model)}
        self.pulls: dict[str, torch.Tensor] = {}
        """With `ewc`, the strength of the pull on each weight: l2sp + ewc times its Fisher information."""
        if "ewc" in recipe:
            assert fisher is not None
            with safe_open(fisher, "pt") as file:
                self.pulls = {
                    name: stored_rows(file, name, one) * recipe["ewc"] + self.strength
                    for name, one in trained_parameters(model)
                }

    def add_gradient(self, model: nn.Module) -> None:
        """Add the gradient of the penalty to that of the loss, which the strategy must have averaged over the ranks."""
        with torch.no_grad():
            for name, parameter in trained_parameters(model):
                weights = local_part(parameter)
                # Lightning may move the model after the anchor was made.
                start = self.start[name] = self.start[name].to(weights.device)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if self.pulls:
                    pull = self.pulls[name] = self.pulls[name].to(weights.device)
                    local_part(parameter.grad).addcmul_(weights - start, pull)
                else:
                    local_part(parameter.grad).add_(weights - start, alpha=self.strength)
