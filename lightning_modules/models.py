"""Build and load Llama models, add dropout where the paper has it, and group parameters for AdamW."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from retain.sweeps.schema.models import Architecture


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


def load_model(folder: Path) -> LlamaForCausalLM:
    """Load a model from its Hugging Face folder (safetensors only), in fp32 and in training mode."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
    )
    # transformers returns models in evaluation mode, in which dropout is off.
    model.train()
    return model


def add_dropout(model: LlamaForCausalLM, rate: float) -> None:
    """Add dropout to the embedding, the attention weights, both residual branches and inside the MLP (paper, Table 7).

    Uses hooks, so that the saved model stays a plain Llama. Active in training mode only; a rate of 0 adds no hooks.
    """
    if rate == 0:
        return

    def drop_output(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate, module.training), *output[1:])
        return functional.dropout(output, rate, module.training)

    def drop_input(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (functional.dropout(inputs[0], rate, module.training), *inputs[1:])

    model.model.embed_tokens.register_forward_hook(drop_output)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = rate
        layer.self_attn.register_forward_hook(drop_output)
        layer.mlp.register_forward_hook(drop_output)
        layer.mlp.down_proj.register_forward_pre_hook(drop_input)


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
