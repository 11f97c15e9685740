"""The table of checks: what holds for Llama in training holds for every family, on tiny random models."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.datamodules.corpora.checkpoints.model import count
from retain.launchers.stage.ranks import LOOPBACK, Ranks, free_port
from retain.lightning_modules import objective
from retain.lightning_modules.compiled import FLEX, MASKS, compile_layers, why_not_flex_attention
from retain.lightning_modules.families import layers, part
from retain.lightning_modules.lora import add_adapters, merge_adapters, plain_weights
from retain.lightning_modules.models import add_dropout, build_from_config, load_model, parameter_groups
from retain.lightning_modules.objective import heldout_loss, next_token_losses, summed_loss
from retain.lightning_modules.shards import whole_weights
from retain.sweeps.schema.families.table import FAMILIES, HEAD, known_families
from retain.sweeps.schema.stages import Lora
from tests.families import CONFIGS, VOCABULARY, tiny_checkpoint, tiny_model
from tests.lightning_modules.tiny_models import LENGTH

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = Lora(rank=4, alpha=8).model_dump()
END_OF_TEXT = 0
every_family = pytest.mark.parametrize("family", FAMILIES)


def sequences(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=sequences()).logits
    return found


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """The largest difference in each tensor, as a share of the tensor's largest entry."""
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert (tensor - expected[name]).abs().max() <= tolerance * expected[name].abs().max() + 1e-7, name


def test_every_family_of_the_table_is_tested() -> None:
    assert FAMILIES.keys() == CONFIGS.keys()
    assert all(family.title in known_families() for family in FAMILIES.values())


@every_family
def test_the_chunked_loss_and_its_gradient_are_the_models_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objective.CHUNK_TOKENS, "cpu", 20)
    model, batch = tiny_model(family), sequences()
    own = model(input_ids=batch, labels=batch).loss
    own.backward()
    expected, predictions = gradients(model), batch.numel() - len(batch)
    ours = summed_loss(model, batch) / predictions
    ours.backward()  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    assert_close(gradients(model), expected)
    assert next_token_losses(model, batch).sum().item() / predictions == pytest.approx(own.item(), rel=1e-6)


def documents(*lengths: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Documents in which about half of the tokens are predicted, and the sequence they are packed into; the last one is cut."""
    draw = torch.Generator().manual_seed(sum(lengths))
    parts = [torch.randint(1, VOCABULARY, (length,), generator=draw) for length in lengths]
    for document in parts[:-1]:
        document[-1] = END_OF_TEXT
    masked = [torch.where(torch.rand(len(part), generator=draw) < 0.5, part, ~part) for part in parts]
    return masked, torch.cat(masked)


def loss_of_documents(model: nn.Module, *packed: list[torch.Tensor]) -> torch.Tensor:
    """The summed loss of what is predicted, each document alone by the model's own logits. A first token is predicted from the
    end of text before it."""
    losses = []
    for parts in packed:
        for index, document in enumerate(parts):
            following = parts[index + 1][:1] if index + 1 < len(parts) else document[:0]
            targets = torch.cat([document[1:], following])
            found = model(input_ids=document.maximum(~document)[None]).logits[0, : len(targets)]
            targets = targets.masked_fill(targets < 0, -100)
            losses.append(functional.cross_entropy(found, targets, ignore_index=-100, reduction="sum"))
    return torch.stack(losses).sum()


def adapted_model(family: str) -> PreTrainedModel:
    """A tiny model with adapters that change it."""
    model = tiny_model(family)
    add_adapters(model, LORA, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    return model


@every_family
def test_masked_losses_within_documents_and_the_gradients_of_adapters_are_those_of_each_document_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(objective.CHUNK_TOKENS, "cpu", 20)
    model = adapted_model(family)
    # Longer than the sliding windows of six tokens; a document of one token; a sequence that is one document.
    packed = [documents(*lengths) for lengths in ((9, 1, 14), (24,), (12, 12))]
    batch = torch.stack([sequence for _, sequence in packed])
    own = loss_of_documents(model, *(parts for parts, _ in packed))
    own.backward()  # type: ignore[no-untyped-call]
    expected = gradients(model)
    ours = summed_loss(model, batch, end_of_text=END_OF_TEXT)
    ours.backward()  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(own.item(), rel=1e-5)
    assert_close(gradients(model), expected, tolerance=1e-4)
    assert next_token_losses(model, batch, END_OF_TEXT).sum().item() == pytest.approx(own.item(), rel=1e-5)
    assert abs(summed_loss(model, batch).item() - own.item()) > 0.1, "the documents do not see each other"


class Dropped(TorchFunctionMode):
    """Collects the width of what dropout is applied to, and the rates of the attention weights."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.attention: list[float] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "dropout" and (kwargs.get("p") or args[1]) > 0:
            self.widths.append(args[0].shape[-1])
        if name == "scaled_dot_product_attention":
            self.attention.append(kwargs.get("dropout_p", 0.0))
        return function(*args, **kwargs)


@contextmanager
def dropping(model: PreTrainedModel) -> Iterator[Dropped]:
    model.train()
    with Dropped() as dropped:
        yield dropped
    model.eval()


@every_family
def test_dropout_is_at_the_four_sites_of_the_paper_at_the_rate_of_the_recipe(family: str) -> None:
    model = tiny_model(family)
    expected = logits(model)
    add_dropout(model, 0.9)
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in layers(model):
        layer.register_forward_hook(
            lambda _, inputs, output: ends.append((inputs[0], output[0] if isinstance(output, tuple) else output))
        )
    with dropping(model) as dropped:
        model(input_ids=sequences(16))
    hidden, mlp = 32, 48
    assert dropped.widths[0] == hidden, "the embedding comes first"
    assert sorted(dropped.widths) == [hidden] * (1 + 2 * 2) + [mlp] * 2
    assert dropped.attention == [0.9, 0.9]
    # Where both branches are dropped, a layer adds nothing to the residual stream; the embedding is dropped itself.
    assert (ends[0][0] == 0).float().mean().item() == pytest.approx(0.9, abs=0.02)
    for begin, end in ends:
        assert (end == begin).float().mean().item() == pytest.approx(0.9**2, abs=0.03)
    assert torch.equal(logits(model), expected), "there is no dropout in evaluation"


@every_family
def test_without_dropout_in_the_recipe_nothing_is_dropped_whatever_the_checkpoint_says(family: str) -> None:
    model = tiny_model(family)
    expected = logits(model)
    add_dropout(model, 0.0)
    model.train()
    assert torch.equal(logits(model), expected)


@every_family
def test_matrices_decay_and_norms_biases_and_embeddings_do_not(family: str) -> None:
    model = tiny_model(family)
    decayed, undecayed = ({id(one) for one in group["params"]} for group in parameter_groups(model, 0.1))
    matrices = {id(one.weight) for one in model.modules() if isinstance(one, nn.Linear | Conv1D)}
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    assert decayed == matrices - embeddings
    assert decayed | undecayed == {id(parameter) for parameter in model.parameters()}


@every_family
def test_the_planned_numbers_of_parameters_are_those_of_the_model(family: str) -> None:
    model = tiny_model(family)
    counts = count(model, FAMILIES[family])
    assert counts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counts.matrices == sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Linear | Conv1D))
    heads, size = CONFIGS[family].get("num_attention_heads", 4), CONFIGS[family].get("head_dim", 8)
    assert counts.attention == 2 * heads * size
    for targets in (LORA["targets"], ("q_proj", "k_proj", "v_proj"), (HEAD,), ("down_proj",)):
        adapted = tiny_model(family)
        add_adapters(adapted, LORA | {"targets": targets}, 0)
        real = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        assert counts.adapter_parameters(4, targets) == real, targets


@every_family
def test_the_paper_s_adapters_mean_output_projection_mlp_and_head(family: str) -> None:
    model = tiny_model(family)
    add_adapters(model, LORA, 0)
    adapted = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    row = FAMILIES[family]
    names = [
        row.projections[name] for name in ("o_proj", "gate_proj", "up_proj", "down_proj") if name in row.projections
    ]
    assert adapted == {row.head} | {f"{row.layers}.{layer}.{name}" for layer in (0, 1) for name in names}


@every_family
def test_merged_adapters_are_saved_as_a_plain_model_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    add_adapters(model, LORA | {"targets": ("q_proj", "k_proj", "v_proj", *LORA["targets"])}, 0)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    expected = logits(model)
    assert not torch.allclose(expected, logits(tiny_model(family)), atol=0.05)
    merge_adapters(model)
    model.save_pretrained(tmp_path, state_dict=plain_weights(whole_weights(model)))
    for loaded in (load_model(tmp_path).eval(), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)):
        assert type(loaded) is type(tiny_model(family))
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_saved_model_is_loaded_by_transformers_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(tmp_path / "checkpoint", family))
    assert model.training
    add_dropout(model, 0.1)
    expected = logits(model.eval())
    model.save_pretrained(tmp_path / "saved", state_dict=plain_weights(whole_weights(model)))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(loaded), expected)
    assert loaded.config.to_diff_dict() == tiny_model(family).config.to_diff_dict() | {
        name: loaded.config.to_diff_dict()[name] for name in ("architectures", "dtype", "transformers_version")
    }
    assert heldout_loss(loaded, sequences(), torch.device("cpu"), bf16=False) == heldout_loss(
        model, sequences(), torch.device("cpu"), bf16=False
    )


@every_family
def test_fresh_weights_are_a_function_of_the_seed(family: str) -> None:
    first, again, other = (build_from_config(family, CONFIGS[family], seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_family
def test_recomputed_activations_give_the_same_bits_with_dropout_too(family: str) -> None:
    found = []
    for recompute in (False, True):
        model = tiny_model(family)
        add_dropout(model, 0.1)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(3)
        summed_loss(model, sequences()).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(model))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@every_family
def test_flex_attention_gives_the_loss_and_the_gradient_of_masks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family)
    if not model._supports_flex_attn:
        assert "has none for" in str(why_not_flex_attention(model, torch.device("cpu"), bf16=False))
        return
    # torch refuses gradients on CPUs, where FlexAttention is not compiled for training; its definition has them.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    batch = torch.stack([documents(*lengths)[1] for lengths in ((9, 1, 14), (24,), (12, 12))])
    add_dropout(model, 0.0)
    found = []
    for kind in (MASKS, FLEX):
        model.set_attn_implementation(kind)
        with torch.compiler.set_stance("force_eager"):
            loss = summed_loss(model, batch, end_of_text=END_OF_TEXT)
            loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.item(), gradients(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_close(found[1][1], found[0][1], tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "end_of_text"),
    [("gemma3_text", None), ("gemma3_text", END_OF_TEXT), ("gpt_neox", None), ("gpt2", None)],
)
def test_compiled_layers_compute_the_same_loss_and_gradient(family: str, end_of_text: int | None) -> None:
    model = adapted_model(family)
    batch = torch.stack([documents(*lengths)[1] for lengths in ((9, 1, 14), (24,), (12, 12))])
    add_dropout(model, 0.0)
    model.train()
    expected = summed_loss(model, batch, end_of_text=end_of_text)
    expected.backward()  # type: ignore[no-untyped-call]
    gradient = gradients(model)
    compile_layers(model)
    ours = summed_loss(model, batch, end_of_text=end_of_text)
    ours.backward()  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(model), gradient, tolerance=1e-4)


SHARDED = """
import os, sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from retain.launchers.stage.training.distributed import join_ranks
from retain.lightning_modules.families import layers
from retain.lightning_modules.lora import plain_weights
from retain.lightning_modules.objective import summed_loss
from retain.lightning_modules.shards import shard_model, whole_weights
from tests.families import CONFIGS, tiny_model
from tests.lightning_modules.test_families import END_OF_TEXT, adapted_model, assert_close, documents, gradients
torch.set_num_threads(1)
join_ranks(2, gpu=False)
mesh = init_device_mesh("cpu", (2,))
batch = torch.stack([documents(9, 1, 6)[1], documents(8, 8)[1]])
adapted = [(adapted_model, family) for family in ("gemma3_text", "gpt_neox", "gpt2")]
for build, family in [*((tiny_model, family) for family in CONFIGS), *adapted]:
    whole, model = build(family), build(family)
    (summed_loss(whole, batch, end_of_text=END_OF_TEXT) / 2).backward()
    shard_model(model, mesh)
    assert all(isinstance(module, FSDPModule) for module in (model, *layers(model))), family
    assert all(len(one.to_local()) < len(one) for one in model.parameters()), family
    summed_loss(model, batch[int(os.environ["RANK"]) :][:1], end_of_text=END_OF_TEXT).backward()
    found = {name: gradient.full_tensor() for name, gradient in gradients(model).items()}
    assert_close(found, gradients(whole))
    weights = whole_weights(model)
    assert all(torch.equal(weight, weights[name]) for name, weight in whole.named_parameters()), family
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_with_half_of_the_weights_each_compute_the_same_gradient_for_every_family() -> None:
    port, path = free_port(), {"PYTHONPATH": ":".join((os.getcwd(), *sys.path))}
    connections = [Ranks(rank, 2).rendezvous(LOOPBACK, port, local_rank=0) for rank in range(2)]
    command = [sys.executable, "-c", SHARDED]
    ranks = [
        subprocess.Popen(command, env=os.environ | path | connection, stderr=subprocess.PIPE, text=True)
        for connection in connections
    ]
    printed = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], printed


@every_family
def test_adapters_on_a_part_of_a_shared_matrix_are_refused(family: str) -> None:
    row = FAMILIES[family]
    problem = row.target_problem(["q_proj", "o_proj"])
    if row.projections["q_proj"] == row.projections["k_proj"]:
        assert problem == f"{row.title} has one matrix for q_proj, k_proj, v_proj; name all three, or none of them"
    else:
        assert problem is None
    assert row.target_problem(["q_proj", "k_proj", "v_proj"]) is None
    if "gate_proj" not in row.projections:
        assert row.target_problem(["gate_proj"]) == f"{row.title} has no gate_proj; name other matrices"
    assert all(
        part(layer, path) is not None for layer in layers(tiny_model(family)) for path in row.projections.values()
    )
