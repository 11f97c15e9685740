"""Fully sharded data parallelism (FSDP): each rank holds a block of rows of every parameter."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from retain.lightning_modules.families import layers


def shard_model(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard the parameters of every layer, and those outside the layers, by rows over the ranks of a mesh."""
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def call_as_forward(
    model: nn.Module, function: Callable[[Any, torch.Tensor], torch.Tensor], sequences: torch.Tensor
) -> torch.Tensor:
    """Return function(model, sequences), called as the model's forward pass so that a sharded model gathers its weights."""
    if not isinstance(model, FSDPModule):
        return function(model, sequences)
    # FSDP's hooks, which gather and reshard the weights, wrap whatever `forward` is.
    model.forward = partial(function, model)
    try:
        found: torch.Tensor = model(sequences)
    finally:
        del model.forward
    return found


def reshard(model: nn.Module) -> None:
    """Free the weights that a forward pass without a backward pass leaves gathered in a sharded model's root."""
    if isinstance(model, FSDPModule):
        model.reshard()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's rows of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: DTensor) -> int:
    """Return the index of this rank's first row. Rows are split into equal blocks; the last ones may be shorter or empty."""
    block = -(-tensor.shape[0] // tensor.device_mesh.size())
    return min(tensor.device_mesh.get_local_rank() * block, tensor.shape[0])


def stored_rows(file: Any, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return a tensor of an open safetensors file that has a parameter's shape: of a sharded parameter, this rank's rows."""
    if not isinstance(parameter, DTensor):
        whole: torch.Tensor = file.get_tensor(name)
        return whole
    first = first_row(parameter)
    rows: torch.Tensor = file.get_slice(name)[first : first + local_part(parameter).shape[0]]
    return rows


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights by name, gathered from all ranks, on the CPU. Every rank must call this."""
    return {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().cpu()
        for name, parameter in model.named_parameters()
    }
