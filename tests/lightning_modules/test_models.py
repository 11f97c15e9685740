from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from retain.lightning_modules.models import add_dropout, build_model, load_model, parameter_groups
from retain.sweeps.schema.models import PRESETS, matrix_parameters, parameters
from tests.lightning_modules.tiny_models import SMALL, random_sequences, small_model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("preset", "size"), [("smollm2-135m", 134_515_008), ("smollm2-1b", 1_029_917_376)])
def test_the_papers_models_have_exactly_their_number_of_parameters(preset: str, size: int) -> None:
    with torch.device("meta"):
        model = build_model(PRESETS[preset], seed=0)
    assert count(model) == size == parameters(PRESETS[preset])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": False},
        {"kv_heads": 4},
        {"kv_heads": 1, "layers": 3},
        {"hidden": 64, "mlp": 100, "vocabulary": 777},
        {"hidden": 24, "heads": 3, "kv_heads": 3, "tied": False, "layers": 1},
    ],
    ids=str,
)
def test_the_planned_number_of_parameters_is_that_of_the_model(fields: dict[str, Any]) -> None:
    planned = replace(SMALL, **fields)
    model = small_model(**fields)
    multiplied = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    assert parameters(planned) == count(model)
    assert matrix_parameters(planned) == multiplied


def test_every_field_of_the_architecture_reaches_the_model() -> None:
    config = small_model(rope_base=5e5, norm_eps=1e-4, initializer_range=0.05, context=128).config
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.rms_norm_eps, config.initializer_range, config.max_position_embeddings) == (1e-4, 0.05, 128)
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (32, 4, 2)
    assert (config.intermediate_size, config.num_hidden_layers, config.vocab_size) == (48, 2, 96)


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, again, other = small_model(3), small_model(3), small_model(4)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


def test_initial_weights_are_fp32_with_the_configured_standard_deviation() -> None:
    model = small_model(initializer_range=0.05, hidden=128, vocabulary=500)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert model.model.layers[0].mlp.up_proj.weight.std().item() == pytest.approx(0.05, rel=0.05)


def test_a_saved_model_loads_bit_identically_in_retain_and_in_transformers(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    for loaded in (load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)):
        assert isinstance(loaded, LlamaForCausalLM)
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True))


def test_only_safetensors_are_loaded_and_nothing_is_unpickled(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_model(tmp_path)


def dropping(rate: float) -> LlamaForCausalLM:
    model = small_model()
    add_dropout(model, rate)
    return model


def test_dropout_is_off_in_evaluation() -> None:
    sequences = random_sequences(4)
    with torch.no_grad():
        plain = small_model().eval()(input_ids=sequences).logits
        assert torch.equal(dropping(0.5).eval()(input_ids=sequences).logits, plain)
        assert not torch.equal(dropping(0.5).train()(input_ids=sequences).logits, plain)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_does_not_change_the_names_of_the_weights(rate: float) -> None:
    assert list(dropping(rate).state_dict()) == list(small_model().state_dict())


def test_a_dropout_of_zero_adds_no_hooks() -> None:
    model, plain = dropping(0.0), small_model()
    for one, two in zip(model.modules(), plain.modules(), strict=True):
        assert len(one._forward_hooks) == len(two._forward_hooks)
        assert len(one._forward_pre_hooks) == len(two._forward_pre_hooks)
    sequences = random_sequences(4)
    assert torch.equal(model.train()(input_ids=sequences).logits, plain.eval()(input_ids=sequences).logits)


DROPPED_INPUTS: dict[str, Callable[[LlamaForCausalLM], nn.Module]] = {
    "embedding": lambda model: model.model.layers[0].input_layernorm,
    "mlp": lambda model: model.model.layers[1].mlp.down_proj,
}


@pytest.mark.parametrize("place", DROPPED_INPUTS)
def test_dropout_zeroes_its_share_of_the_embedding_and_of_the_mlp(place: str) -> None:
    model = dropping(0.25).train()
    seen: list[torch.Tensor] = []
    DROPPED_INPUTS[place](model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    model(input_ids=random_sequences(64))
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("branch", ["self_attn", "mlp"])
def test_dropout_zeroes_its_share_of_both_residual_branches(branch: str) -> None:
    model = dropping(0.25).train()
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    getattr(model.model.layers[0], branch).register_forward_hook(keep)
    torch.manual_seed(0)
    model(input_ids=random_sequences(64))
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_dropout_acts_on_the_attention_weights_in_training_only() -> None:
    model = dropping(0.5)
    attention = model.model.layers[0].self_attn
    seen: list[torch.Tensor] = []
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hidden = torch.randn(2, 16, SMALL.hidden, generator=torch.Generator().manual_seed(0))
    rotation = model.model.rotary_emb(hidden, torch.arange(16)[None])
    for training in (True, True, False, False):
        attention.train(training)
        attention(hidden, position_embeddings=rotation, attention_mask=None)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])


@pytest.mark.parametrize("tied", [True, False])
def test_only_matrices_have_weight_decay_and_every_parameter_is_in_one_group(tied: bool) -> None:
    model = small_model(tied=tied)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)
    decaying = [names[id(parameter)] for parameter in decayed["params"]]
    not_decaying = [names[id(parameter)] for parameter in undecayed["params"]]
    assert sorted(decaying + not_decaying) == sorted(names.values())
    assert all("norm" in name or "embed_tokens" in name for name in not_decaying)
    assert all("proj" in name or name == "lm_head.weight" for name in decaying)
    assert ("lm_head.weight" in decaying) == (not tied)


def test_frozen_parameters_are_in_no_group() -> None:
    model = small_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert not any(parameter is model.model.embed_tokens.weight for group in groups for parameter in group["params"])
