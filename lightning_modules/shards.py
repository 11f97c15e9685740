"""Parameters that ranks hold in parts: fully sharded data parallelism splits each one by rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM


def shard_model(model: LlamaForCausalLM, mesh: DeviceMesh) -> None:
    """Split every layer's parameters, and the rest of the model's, by rows over the ranks of a mesh."""
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def in_forward(
    model: nn.Module, function: Callable[[Any, torch.Tensor], torch.Tensor], sequences: torch.Tensor
) -> torch.Tensor:
    """function(model, sequences) as the forward pass of a model, before which one held in parts gathers its weights."""
    if not isinstance(model, FSDPModule):
        return function(model, sequences)
    # The hooks that gather and shard again are around forward, whatever it is.
    model.forward = partial(function, model)
    try:
        found: torch.Tensor = model(sequences)
    finally:
        del model.forward
    return found


def reshard(model: nn.Module) -> None:
    """Go back to this rank's rows after a forward pass without a backward one, which leaves the root's gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a tensor that is held in parts; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: DTensor) -> int:
    """The number of this rank's first row: rows are cut into equal blocks, the last ones shorter or empty."""
    block = -(-tensor.shape[0] // tensor.device_mesh.size())
    return min(tensor.device_mesh.get_local_rank() * block, tensor.shape[0])


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All weights on the CPU by name. Every rank must call it: each gets the parts of the others."""
    return {name: _whole(parameter).detach().cpu() for name, parameter in model.named_parameters()}


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
