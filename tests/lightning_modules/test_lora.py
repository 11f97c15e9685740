from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.lora import add_adapters, merge_adapters, plain_weights
from retain.lightning_modules.models import add_dropout, load_model, parameter_groups, trained_parameters
from retain.lightning_modules.objective import heldout_loss
from retain.lightning_modules.shards import whole_weights
from retain.lightning_modules.stage import StageModule
from retain.sweeps.schema.models import adapter_parameters
from retain.sweeps.schema.stages import Lora
from tests.lightning_modules.tiny_models import RECIPE, SMALL, random_sequences, small_model, steps_of, train

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = Lora(rank=4, alpha=8).model_dump()
"""The paper's targets, at a rank for a small model."""
WIDE: dict[str, Any] = {"initializer_range": 0.2}


def adapted(seed: int = 0, lora: dict[str, Any] = LORA, **fields: Any) -> LlamaForCausalLM:
    model = small_model(seed, **WIDE | fields)
    add_adapters(model, lora, seed)
    return model


def with_random_adapters(lora: dict[str, Any] = LORA, **fields: Any) -> LlamaForCausalLM:
    """Return a model with adapters of random weights, which change its logits."""
    model = adapted(lora=lora, **fields)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in trained_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=random_sequences(4)).logits
    return found


def save_merged(model: LlamaForCausalLM, folder: Path) -> Path:
    """Merge the adapters and save the model, as at the end of a stage."""
    merge_adapters(model)
    model.save_pretrained(folder, state_dict=plain_weights(whole_weights(model)))
    return folder


def test_the_defaults_are_those_of_the_paper() -> None:
    assert Lora().model_dump() == {
        "rank": 64,
        "alpha": 128,
        "dropout": 0,
        "targets": ("o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    }


def test_only_adapters_are_trained_and_query_key_and_value_have_none() -> None:
    model = adapted()
    names = [name for name, _ in trained_parameters(model)]
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    wrapped = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert wrapped == {"o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    decayed, undecayed = parameter_groups(model, 0.1)
    assert len(decayed["params"]) == len(names) == 2 * (4 * SMALL.layers + 1)
    assert undecayed["params"] == []


@pytest.mark.parametrize("targets", [LORA["targets"], ("q_proj", "k_proj", "v_proj"), ("lm_head",), ("down_proj",)])
@pytest.mark.parametrize("fields", [{}, {"tied": False, "kv_heads": 4, "layers": 1}], ids=str)
def test_the_planned_number_of_adapter_parameters_is_that_of_the_model(
    targets: tuple[str, ...], fields: dict[str, Any]
) -> None:
    model = adapted(lora=LORA | {"targets": targets}, **fields)
    real = sum(parameter.numel() for _, parameter in trained_parameters(model))
    assert adapter_parameters(replace(SMALL, **fields), 4, targets) == real


def test_new_adapters_do_not_change_the_logits_and_are_a_function_of_the_seed() -> None:
    assert torch.equal(logits(adapted()), logits(small_model(**WIDE)))
    first, again, other = (dict(trained_parameters(adapted(seed))) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss_and_leaves_the_base_bit_identical() -> None:
    recipe = RECIPE | {"sequences": 80, "steps": 10}
    module = StageModule(adapted(), recipe)
    before = {name: weight.clone() for name, weight in module.model.named_parameters()}
    batch = steps_of(RECIPE)[0]
    loss = heldout_loss(module.model, batch, torch.device("cpu"), bf16=False).loss
    train(module, [batch] * 10)
    trained = dict(trained_parameters(module.model))
    for name, weight in module.model.named_parameters():
        assert torch.equal(weight, before[name]) == (name not in trained), name
    assert heldout_loss(module.model, batch, torch.device("cpu"), bf16=False).loss < 0.95 * loss


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_model_is_a_plain_llama_with_the_logits_of_the_adapted_model(tied: bool, tmp_path: Path) -> None:
    model = with_random_adapters(tied=tied)
    expected = logits(model)
    assert not torch.allclose(expected, logits(small_model(**WIDE, tied=tied)), atol=0.1)
    folder = save_merged(model, tmp_path)
    assert not [path.name for path in folder.iterdir() if "adapter" in path.name]
    for loaded in (load_model(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)):
        assert type(loaded) is LlamaForCausalLM
        assert [name for name, _ in loaded.named_parameters()] == [
            name for name, _ in small_model(tied=False).named_parameters()
        ]
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_on_a_tied_head_unties_it_and_leaves_the_embedding_unchanged(
    tmp_path: Path,
) -> None:
    base = small_model(**WIDE)
    child = load_model(save_merged(with_random_adapters(), tmp_path))
    assert child.config.tie_word_embeddings is False
    assert torch.equal(child.model.embed_tokens.weight, base.model.embed_tokens.weight)
    assert not torch.equal(child.lm_head.weight, base.lm_head.weight)
    decayed, undecayed = parameter_groups(child, 0.1)
    assert any(parameter is child.lm_head.weight for parameter in decayed["params"])
    assert any(parameter is child.model.embed_tokens.weight for parameter in undecayed["params"])


def test_a_tied_head_without_an_adapter_stays_tied(tmp_path: Path) -> None:
    model = with_random_adapters(lora=LORA | {"targets": ("o_proj", "up_proj")})
    expected = logits(model)
    child = load_model(save_merged(model, tmp_path))
    assert child.config.tie_word_embeddings is True
    assert child.lm_head.weight is child.model.embed_tokens.weight
    torch.testing.assert_close(logits(child), expected, rtol=1e-4, atol=1e-5)


def test_dropout_with_adapters_acts_at_the_same_modules_and_only_in_training() -> None:
    model = with_random_adapters()
    expected = logits(model.eval())
    add_dropout(model, 0.25)
    assert torch.equal(logits(model.eval()), expected)
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[0]

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    layer.self_attn.register_forward_hook(keep("attention branch"))
    layer.mlp.register_forward_hook(keep("MLP branch"))
    # Base and adapter of a wrapped projection read the same input after dropout.
    layer.mlp.down_proj.base_layer.register_forward_pre_hook(lambda _, inputs: seen.update(base=inputs[0]))
    layer.mlp.down_proj.lora_A["default"].register_forward_pre_hook(lambda _, inputs: seen.update(adapter=inputs[0]))
    torch.manual_seed(0)
    model.train()(input_ids=random_sequences(64))
    for name, values in seen.items():
        assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.02), name
    assert torch.equal(seen["base"], seen["adapter"])


def test_lora_dropout_is_a_function_of_seed_and_step() -> None:
    def weights(noise: int) -> dict[str, torch.Tensor]:
        module = StageModule(adapted(lora=LORA | {"dropout": 0.3}), RECIPE)
        torch.manual_seed(noise)
        train(module, steps_of(RECIPE))
        return whole_weights(module.model)

    first, again = weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    plain = StageModule(adapted(), RECIPE)
    train(plain, steps_of(RECIPE))
    assert any(not torch.equal(first[name], weight) for name, weight in whole_weights(plain.model).items())


def test_bf16_autocast_applies_to_models_with_adapters() -> None:
    model = with_random_adapters()
    held = random_sequences(8)
    exact, rounded = (heldout_loss(model, held, torch.device("cpu"), bf16=bf16).loss for bf16 in (False, True))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


class Gradients(Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.steps.append({name: weight.grad.clone() for name, weight in trained_parameters(module)})


def test_a_micro_batch_does_not_change_the_gradients_of_adapters() -> None:
    found = []
    for micro_batch in (None, 3):
        module, seen = (
            StageModule(with_random_adapters(), RECIPE | {"lr": 1e-12, "min_lr": 0.0}, micro_batch),
            Gradients(),
        )
        train(module, steps_of(RECIPE), seen)
        found.append(seen.steps)
    for whole, parts in zip(*found, strict=True):
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-7)


def test_early_stopping_keeps_and_restores_the_best_adapters() -> None:
    recipe = RECIPE | {"sequences": 64, "steps": 8}
    module = StageModule(adapted(), recipe)
    after: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate(step: int) -> float:
        after[step] = whole_weights(module.model)
        after[step] = {name: weight.clone() for name, weight in after[step].items()}
        return {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1}[step]

    best = KeepBest(evaluate, every=2, patience=2, steps=8)
    train(module, steps_of(recipe), best)
    assert set(best.weights) == {name for name, _ in trained_parameters(module.model)}
    assert all(torch.equal(weight, after[4][name]) for name, weight in whole_weights(module.model).items())
    assert any(not torch.equal(weight, after[8][name]) for name, weight in whole_weights(module.model).items())
