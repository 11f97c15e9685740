"""Build and load models, add dropout where the paper has it, and group parameters for AdamW."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from retain.lightning_modules.families import family_of, layers, part
from retain.sweeps.base.errors import DamageError
from retain.sweeps.schema.models import Architecture

_AUTO: Any = AutoModelForCausalLM
"""Its functions have no types."""


def build_model(model: Architecture, seed: int, end_of_text: int | None = None) -> LlamaForCausalLM:
    """Return a newly initialised Llama in fp32, with weights that are a function of the seed."""
    config = LlamaConfig(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.mlp,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.context,
        rms_norm_eps=model.norm_eps,
        initializer_range=model.initializer_range,
        tie_word_embeddings=model.tied,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def build_from_config(family: str, config: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Return a newly initialised model of a family in fp32, with weights that are a function of the seed.

    config: the fields of the family's config.json.
    """
    settings = AutoConfig.for_model(family, **config)
    torch.manual_seed(seed)
    model: PreTrainedModel = _AUTO.from_config(settings, dtype=torch.float32)
    model.train()
    return model


def load_model(folder: Path) -> PreTrainedModel:
    """Load a model from its Hugging Face folder (safetensors only, no code of the folder), in fp32 and in training mode.

    Raises DamageError if the folder lacks a weight of the model.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, found = _AUTO.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        raise DamageError(f"{folder}: the weights lack {missing[0]} ({len(missing)} missing); restore the folder")
    # transformers returns models in evaluation mode, in which dropout is off.
    model.train()
    loaded: PreTrainedModel = model
    return loaded


def on_device(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """Move a model to a device; returns the same model."""
    moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    return moved


def average_with(model: PreTrainedModel, start: PreTrainedModel, share: float) -> None:
    """Replace the weights by (1 - share) · start + share · weights (WiSE-FT, arXiv 2109.01903, Equation 1).

    A head that only the model has untied from its embedding is averaged with the start's embedding.
    """
    before = dict(start.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.lerp_(before[name], 1 - share)


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Set dropout at the embedding, the attention weights, the residual branches and inside the MLP (paper, Table 7).

    A family's own dropout takes the rate. Where it has none, hooks drop, so that the saved model stays a plain one. Active in
    training mode only; a rate of 0 adds no hooks.
    """
    family = family_of(model)
    _drop_output(part(model, family.embedding_dropout), rate)
    for layer in layers(model):
        _set_rate(layer, family.attention_dropout, rate)
        for branch in family.branch_dropout:
            _drop_output(part(layer, branch), rate)
        if rate > 0:
            part(layer, family.mlp_dropout).register_forward_pre_hook(
                lambda module, inputs: (functional.dropout(inputs[0], rate, module.training), *inputs[1:])
            )


def _drop_output(module: nn.Module, rate: float) -> None:
    """Give a dropout module its rate; drop the output of any other module."""

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate, module.training), *output[1:])
        return functional.dropout(output, rate, module.training)

    if isinstance(module, nn.Dropout):
        module.p = rate
    elif rate > 0:
        module.register_forward_hook(drop)


def _set_rate(layer: nn.Module, path: str, rate: float) -> None:
    """Set the rate that is at a path below a layer, or that the dropout module there holds."""
    owner, _, name = path.rpartition(".")
    module = part(layer, owner)
    if isinstance(getattr(module, name), nn.Dropout):
        getattr(module, name).p = rate
    else:
        setattr(module, name, rate)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and values of the trained parameters: all parameters, or with LoRA only the adapters."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def parameter_groups(model: nn.Module, weight_decay: float, decay: str = "matrices") -> list[dict[str, Any]]:
    """Return AdamW's two groups: parameters with weight decay, and those without.

    decay: matrices (and adapters) decay, but not norms, embeddings and a tied head; or all parameters decay.
    """
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for _, parameter in trained_parameters(model):
        is_matrix = parameter.dim() > 1 and id(parameter) not in embeddings
        (decayed if is_matrix or decay == "all" else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
