"""Low-rank adapters by peft: the base is frozen, they alone are trained, and at the end they are merged into it.

A head that is tied to the input embedding is untied first: an adapter on the head changes the output matrix alone, and a
merged matrix that both share would change the embedding too. So what comes out of a stage with an adapter on the head is
an untied model (`tie_word_embeddings: false`, a `lm_head.weight` of its own), larger by one embedding; stages after it
load and train it as such, its head decaying as an untied head does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaForCausalLM

HEAD = "lm_head"


def add_adapters(model: LlamaForCausalLM, lora: Mapping[str, Any], seed: int) -> None:
    """Freeze the model and wrap its `targets`, in place; lora: rank, alpha, dropout and targets (paper, Table 9).

    At first the adapters change nothing (B is 0); A is a function of the seed. The wrapped modules stay where they were, so
    hooks put on them later see the input and the output of base and adapter together.
    """
    if HEAD in lora["targets"] and model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    config = LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=list(lora["targets"])
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to its base, in place: from here on the base alone is what the model computes with.

    Weights that ranks hold in parts stay in parts; every rank must call it then.
    """
    for part in model.modules():
        if isinstance(part, LoraLayer):
            part.merge()


def plain_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a merged model under the names of a plain Llama; those of a model without adapters as they are."""
    return {name.replace(".base_layer", ""): weight for name, weight in weights.items() if ".lora_" not in name}
