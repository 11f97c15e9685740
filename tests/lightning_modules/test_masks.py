"""Tokens that are not predicted, and attention within documents."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel

from retain.lightning_modules.compiled import (
    FLEX,
    MASKS,
    attend_by_flex_attention,
    attend_in_fp32,
    compile_layers,
    uncompiled,
    why_not_flex_attention,
)
from retain.lightning_modules.gradient_span import Sketch, batch_gradient
from retain.lightning_modules.objective import heldout_loss, model_inputs, next_token_losses, predictions, summed_loss
from retain.lightning_modules.stage import StageModule
from tests.families import CONFIGS, tiny_model
from tests.lightning_modules.test_stage import Seen
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, SMALL, random_sequences, small_model, train

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")
END = 7
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
FROZEN = {"lr": 1e-12, "min_lr": 0.0, "clip": 1e9}


def masked_sequences(count: int, share: float = 0.4, seed: int = 0) -> torch.Tensor:
    """Random sequences in which about a share of the tokens is predicted."""
    sequences = random_sequences(count, seed)
    draw = torch.rand(sequences.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draw < share, sequences, ~sequences)


def naive_sum(model: LlamaForCausalLM, sequences: torch.Tensor) -> torch.Tensor:
    """The summed loss of the predicted tokens, by the model's own logits."""
    tokens = sequences.maximum(~sequences)
    targets = torch.where(sequences >= 0, tokens, -100)[:, 1:]
    logits = model(input_ids=tokens).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def steps() -> list[torch.Tensor]:
    """Steps of very different numbers of predictions: the second predicts nothing, the last has three sequences."""
    batches = list(masked_sequences(RECIPE["sequences"]).split(RECIPE["batch"]))
    batches[1] = batches[1].minimum(~batches[1])
    batches[2][1:] = batches[2][1:].minimum(~batches[2][1:])
    return batches


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 8])
def test_the_gradient_of_a_step_is_that_of_the_mean_over_its_predicted_tokens(micro_batch: int | None) -> None:
    module = StageModule(small_model(initializer_range=0.2), RECIPE | FROZEN, micro_batch, masked=True)
    seen, model = Seen(), small_model(initializer_range=0.2)
    train(module, steps(), seen)
    counts = [int(predictions(batch)) for batch in steps()]
    assert counts[1] == 0
    assert len(set(counts)) == 4
    for batch, count, gradients in zip(steps(), counts, seen.gradients, strict=True):
        mean = naive_sum(model, batch) / max(count, 1)
        for ours, exact in zip(gradients, torch.autograd.grad(mean, list(model.parameters())), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


def test_a_mask_of_ones_trains_the_same_weights_up_to_rounding() -> None:
    plain, masked = (
        StageModule(small_model(initializer_range=0.2), RECIPE, 3, masked=masked) for masked in (False, True)
    )
    for module in (plain, masked):
        train(module, list(random_sequences(RECIPE["sequences"]).split(RECIPE["batch"])))
    for one, other in zip(plain.model.parameters(), masked.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), count=st.integers(1, 5))
def test_held_out_losses_are_means_over_predicted_tokens(seed: int, share: float, count: int) -> None:
    model, sequences = small_model(initializer_range=0.2), masked_sequences(count, share, seed)
    number = int(predictions(sequences))
    if number:
        found = heldout_loss(model, sequences, CPU, bf16=False, batch_size=2)
        assert found.tokens == number
        assert found.loss == pytest.approx(float(naive_sum(model, sequences).detach()) / number, rel=1e-4)
    assert float(next_token_losses(model, sequences).sum()) == pytest.approx(
        float(naive_sum(model, sequences).detach()), rel=1e-4, abs=1e-5
    )


def test_gradients_of_a_probe_are_those_of_predicted_tokens() -> None:
    model, sequences = small_model(initializer_range=0.2), masked_sequences(4)
    exact = torch.autograd.grad(naive_sum(model, sequences) / int(predictions(sequences)), list(model.parameters()))
    found = batch_gradient(model, sequences, Sketch(None), micro_batch=3)
    torch.testing.assert_close(found, torch.cat([part.flatten() for part in exact]), rtol=1e-4, atol=1e-6)


def packed_documents(*lengths: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Documents that end with END, and the sequence they are packed into; the last document is cut before its end."""
    draw = torch.Generator().manual_seed(3)
    documents = [torch.randint(END + 1, SMALL.vocabulary, (length,), generator=draw) for length in lengths]
    for document in documents[:-1]:
        document[-1] = END
    return documents, torch.cat(documents)[None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(16,), (5, 1, 1, 9), (1, 15), (8, 8)])
def test_logits_of_a_document_in_a_sequence_are_those_of_the_document_alone(
    attention: str, lengths: tuple[int, ...]
) -> None:
    model = small_model(initializer_range=0.2).eval()
    model.set_attn_implementation(attention)
    documents, sequence = packed_documents(*lengths)
    together = model(**model_inputs(sequence, END)).logits[0]
    alone = torch.cat([model(input_ids=document[None]).logits[0] for document in documents])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    if len(lengths) > 1:
        assert not torch.allclose(model(**model_inputs(sequence, None)).logits[0], alone, atol=1e-3)


@settings(max_examples=30)
@given(tokens=st.lists(st.integers(0, END + 3), min_size=2, max_size=20))
def test_positions_begin_again_after_every_end_of_text(tokens: list[int]) -> None:
    expected, place = [], 0
    for token in tokens:
        expected.append(place)
        place = 0 if token == END else place + 1
    masked = torch.tensor([[~token if index % 3 else token for index, token in enumerate(tokens)]])
    inputs = model_inputs(masked, END)
    assert inputs["input_ids"].tolist() == [tokens]
    assert inputs["position_ids"].tolist() == [expected]
    assert model_inputs(masked, None).keys() == {"input_ids"}


def test_losses_within_documents_are_the_same_in_training_and_evaluation() -> None:
    model = small_model(initializer_range=0.2)
    sequences = torch.cat([packed_documents(*lengths)[1] for lengths in ((5, 1, 1, 9), (16,), (8, 8))])
    trained = summed_loss(model, sequences, end_of_text=END).item()
    across = summed_loss(model, sequences).item()
    evaluated = heldout_loss(model, sequences, CPU, bf16=False, end_of_text=END)
    assert evaluated.tokens == 3 * (LENGTH - 1)
    assert evaluated.loss * evaluated.tokens == pytest.approx(trained, rel=1e-5)
    assert abs(trained - across) > 0.01


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.1}])
def test_a_stage_within_documents_trains_on_them(fields: dict[str, Any]) -> None:
    sequences = torch.cat([packed_documents(5, 1, 1, 9)[1]] * 8)
    module = StageModule(small_model(), RECIPE | {"sequences": 32} | fields, 3, end_of_text=END, masked=True)
    before = heldout_loss(module.model, sequences, CPU, bf16=False, end_of_text=END).loss
    train(module, [sequences] * 4)
    assert heldout_loss(module.model, sequences, CPU, bf16=False, end_of_text=END).loss < 0.9 * before


def documents() -> torch.Tensor:
    return torch.cat([packed_documents(*lengths)[1] for lengths in ((5, 1, 1, 9), (16,), (8, 8))])


def by_flex_attention() -> PreTrainedModel:
    model = small_model(initializer_range=0.2)
    attend_by_flex_attention(model)
    return model


@pytest.mark.slow
def test_compiled_layers_attend_by_flex_attention_without_compiling_again() -> None:
    torch.compiler.reset()  # other tests compile the same layers
    model, masked = by_flex_attention().eval(), small_model(initializer_range=0.2).eval()
    compile_layers(model)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (documents(), documents().flip(0)):
            losses = next_token_losses(model, batch, END)
            torch.testing.assert_close(losses, next_token_losses(masked, batch, END), rtol=1e-4, atol=1e-4)


def test_what_is_not_compiled_attends_by_masks() -> None:
    model = by_flex_attention()
    expected = heldout_loss(small_model(initializer_range=0.2), documents(), CPU, bf16=False, end_of_text=END)
    assert heldout_loss(model, documents(), CPU, bf16=False, end_of_text=END) == expected
    with uncompiled(model):
        assert model.config._attn_implementation == MASKS
    assert model.config._attn_implementation == FLEX


def test_a_machine_that_cannot_train_with_flex_attention_says_why() -> None:
    assert "backward on CPU" in str(why_not_flex_attention(small_model(), CPU, bf16=False))


@pytest.mark.parametrize("end_of_text", [None, END])
def test_attention_in_fp32_changes_no_bit_of_a_step_in_fp32(end_of_text: int | None) -> None:
    usual, ours = (small_model(initializer_range=0.2) for _ in range(2))
    attend_in_fp32(ours)
    losses = [summed_loss(model, documents(), end_of_text=end_of_text) for model in (usual, ours)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for one, other in zip(usual.parameters(), ours.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("family", CONFIGS)
def test_steps_in_bf16_attend_in_fp32_in_every_family_and_within_documents(family: str) -> None:
    exact, mixed = tiny_model(family), tiny_model(family)
    attend_in_fp32(mixed)
    attended: list[torch.dtype] = []
    kernel = functional.scaled_dot_product_attention

    def seen(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        attended.append(query.dtype)
        return kernel(query, *arguments, **options)

    sequences = documents()
    for end_of_text in (None, END):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            patch.setattr(functional, "scaled_dot_product_attention", seen)
            found = summed_loss(mixed, sequences, end_of_text=end_of_text)
        torch.testing.assert_close(found, summed_loss(exact, sequences, end_of_text=end_of_text), rtol=0.02, atol=0.0)
    assert set(attended) == {torch.float32}


@needs_gpu
@pytest.mark.parametrize("bf16", [False, True])
def test_a_gpu_can_train_with_flex_attention(bf16: bool) -> None:
    assert why_not_flex_attention(small_model(hidden=64, heads=2, kv_heads=2), torch.device("cuda"), bf16) is None


@needs_gpu
def test_a_stage_on_a_gpu_trains_the_same_weights_by_flex_attention_and_by_masks() -> None:
    shape = {"hidden": 64, "heads": 2, "kv_heads": 1, "initializer_range": 0.2}
    batches = [documents().repeat(3, 1)[:8]] * 4
    models = []
    for flex in (False, True):
        module = StageModule(
            small_model(**shape), RECIPE | {"sequences": 32}, compiled=True, end_of_text=END, flex_attention=flex
        )
        train(module, batches, accelerator="gpu")
        models.append(module.model)
    for masked, flexible in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(flexible, masked, rtol=1e-2, atol=1e-4)
