"""Low-rank adapters (LoRA, by peft): only the adapters are trained, and they are merged into the base at the end.

A head that is tied to the input embedding is untied before it gets an adapter: the adapter changes the output matrix alone,
and merging it into a shared matrix would change the embedding too. So a stage with an adapter on the head ends in an untied
model (`tie_word_embeddings: false`, with its own `lm_head.weight`), larger by one embedding matrix. Later stages load and
train the untied model, with weight decay on its head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from retain.lightning_modules.families import family_of, head
from retain.sweeps.schema.families.table import HEAD


def add_adapters(model: PreTrainedModel, lora: Mapping[str, Any], seed: int) -> None:
    """Freeze the model and add adapters to its target modules, in place.

    lora: rank, alpha, dropout and targets (paper, Table 9). New adapters do not change the model, because B is 0; A is a
    function of the seed. Target modules keep their names, so hooks registered later on them see the input and the output
    of base and adapter together.
    """
    if HEAD in lora["targets"] and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        head(model).weight = nn.Parameter(head(model).weight.detach().clone())
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=family_of(model).targets(lora["targets"]),
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> None:
    """Merge every adapter into its base, in place: afterwards the model computes with the base alone.

    Sharded weights stay sharded; every rank must then call this.
    """
    for part in model.modules():
        if isinstance(part, LoraLayer):
            part.merge()


def plain_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a merged model's weights under the names of the plain model; weights without adapters are unchanged."""
    return {name.replace(".base_layer", ""): weight for name, weight in weights.items() if ".lora_" not in name}
