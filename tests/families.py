"""Tiny models of every family, with the family's peculiarities switched on, and checkpoints as transformers writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from retain.datamodules.corpora.tokenizer import Tokenizer, train_tokenizer
from tests.studies import WORDS, documents_of

VOCABULARY, CONTEXT = 320, 64
COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    # Large enough that differences between two computations would show.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": COMMON | GROUPED | {"attention_bias": True, "mlp_bias": True, "attention_dropout": 0.1},
    "mistral": COMMON | GROUPED | {"sliding_window": 6, "head_dim": 12},
    "qwen2": COMMON | GROUPED | SLIDING | {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": COMMON | GROUPED | {"head_dim": 12, "tie_word_embeddings": True},
    "smollm3": COMMON | GROUPED | {"no_rope_layers": [1, 0]},
    "olmo2": COMMON | GROUPED,
    "gemma3_text": COMMON
    | GROUPED
    | SLIDING
    | {"head_dim": 12, "query_pre_attn_scalar": 12, "final_logit_softcapping": 2.0, "tie_word_embeddings": True},
    "granite": COMMON
    | GROUPED
    | {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "phi": COMMON | GROUPED | {"partial_rotary_factor": 0.5, "resid_pdrop": 0.1},
    "gpt_neox": COMMON | {"rotary_pct": 0.25, "hidden_dropout": 0.1},
    "gpt2": {
        **{name: COMMON[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")},
        "n_embd": 32,
        "n_inner": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
    },
}
"""The fields of a tiny model's config.json, by family."""


def tiny_model(family: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """Return a random model, built by transformers, in evaluation mode. Biases and norms are random too."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **CONFIGS[family] | fields), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval()
    return model


def tiny_tokenizer() -> Tokenizer:
    """Return a tokeniser of the tiny study's corpora, with as many entries as the models have."""
    return train_tokenizer([document for name in WORDS for document in documents_of(name)], VOCABULARY)


def tiny_checkpoint(
    folder: Path, family: str, tokenizer: Tokenizer | None = None, seed: int = 0, shard: str = "5GB", **fields: Any
) -> Path:
    """Write a random checkpoint as transformers does, with a tokeniser if given. Returns its folder.

    shard: the largest size of a file of weights.
    """
    tiny_model(family, seed, **fields).save_pretrained(folder, max_shard_size=shard)
    if tokenizer is not None:
        tokenizer.save(folder)
    return folder
