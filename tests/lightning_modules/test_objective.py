import math
from collections.abc import Sequence

import pytest
import torch

from retain.lightning_modules.models import add_dropout
from retain.lightning_modules.objective import (
    CHUNK_TOKENS,
    IGNORE_INDEX,
    heldout_loss,
    loss_and_gradient,
    next_token_losses,
    no_sums,
    summed_loss,
)
from tests.lightning_modules.tiny_models import LENGTH, SMALL, random_sequences, small_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 5])
def test_the_loss_is_that_of_transformers(count: int) -> None:
    model, sequences = small_model().eval(), random_sequences(count)
    with torch.no_grad():
        theirs = model(input_ids=sequences, labels=sequences).loss.item()
        ours = next_token_losses(model, sequences).sum().item() / (count * (LENGTH - 1))
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 96, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_that_of_transformers_for_any_chunk_size(
    tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", chunk)
    model, sequences = small_model(initializer_range=0.2, tied=tied).double(), random_sequences(6)
    logits = model(input_ids=sequences).logits[:, :-1]
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
    ours = summed_loss(model, sequences) / (6 * (LENGTH - 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    for one, two in gradients:
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_the_bf16_gradient_is_as_close_to_the_exact_one_as_that_of_cross_entropy() -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(6)
    parameters = list(model.parameters())

    def plain() -> torch.Tensor:
        logits = model(input_ids=sequences).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), reduction="sum")

    exact = flat(torch.autograd.grad(plain(), parameters))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = flat(torch.autograd.grad(plain(), parameters))
        ours = flat(torch.autograd.grad(summed_loss(model, sequences), parameters))
    assert torch.dist(ours, exact) < 1.1 * torch.dist(theirs, exact)


@pytest.mark.parametrize("scale", [0.1, 3.0, 80.0, 3e4])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2**-23), (torch.bfloat16, 2**-8)])
def test_loss_and_gradient_of_given_logits_are_exact_also_for_confident_predictions(
    dtype: torch.dtype, unit: float, scale: float
) -> None:
    draw = torch.Generator().manual_seed(3)
    logits = (torch.randn(64, 50, generator=draw) * scale).to(dtype)
    targets = torch.where(torch.rand(64, generator=draw) < 0.5, logits.argmax(dim=1), torch.arange(64) % 50)
    targets[::7] = IGNORE_INDEX
    exact = logits.double().requires_grad_()
    truth = torch.nn.functional.cross_entropy(exact, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    (slope,) = torch.autograd.grad(truth, exact)
    loss, gradient = loss_and_gradient(logits, targets)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(truth.item(), rel=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=4 * unit, atol=1e-6)


def flat(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_loss_of_a_sequence_does_not_depend_on_the_others() -> None:
    model, sequences = small_model().eval(), random_sequences(4)
    with torch.no_grad():
        together = next_token_losses(model, sequences)
        alone = torch.cat([next_token_losses(model, one[None]) for one in sequences])
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_uniform_prediction_is_the_logarithm_of_the_vocabulary() -> None:
    model = small_model()
    torch.nn.init.zeros_(model.model.embed_tokens.weight)
    found = heldout_loss(model, random_sequences(3), CPU, bf16=False)
    assert found.loss == pytest.approx(math.log(SMALL.vocabulary), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_a_held_out_loss_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(10)
    whole = heldout_loss(model, sequences, CPU, bf16=False, batch_size=10)
    parts = heldout_loss(model, sequences, CPU, bf16=False, batch_size=batch_size)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.tokens == whole.tokens == 10 * (LENGTH - 1)


def test_a_held_out_loss_weights_all_tokens_equally_and_does_not_depend_on_the_order_of_sequences() -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(9)
    with torch.no_grad():
        token = [
            -torch.log_softmax(model(input_ids=one[None]).logits[0, :-1], -1)[range(LENGTH - 1), one[1:]]
            for one in sequences
        ]
    found = heldout_loss(model, sequences, CPU, bf16=False, batch_size=4)
    assert found.loss == pytest.approx(torch.cat(token).double().mean().item(), rel=1e-6)
    assert heldout_loss(model, sequences.flip(0), CPU, bf16=False, batch_size=4).loss == pytest.approx(
        found.loss, rel=1e-9
    )


def test_the_held_out_losses_of_parts_average_by_their_tokens() -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(9)
    whole, few, more = (
        heldout_loss(model, part, CPU, bf16=False) for part in (sequences, sequences[:2], sequences[2:])
    )
    assert (few.loss * few.tokens + more.loss * more.tokens) / whole.tokens == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_computing_a_held_out_loss_does_not_change_the_model(training: bool) -> None:
    model = small_model()
    add_dropout(model, 0.5)
    model.train(training)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first, again = (heldout_loss(model, random_sequences(4), CPU, bf16=False) for _ in range(2))
    assert first == again
    assert model.training is training
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_changes_a_held_out_loss_only_slightly() -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(8)
    exact = heldout_loss(model, sequences, CPU, bf16=False)
    rounded = heldout_loss(model, sequences, CPU, bf16=True)
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.01)


@pytest.mark.parametrize("count", [1, 20])
def test_the_parts_of_a_heldout_loss_add_up_and_leave_the_whole_as_it_is(count: int) -> None:
    model, sequences = small_model(), random_sequences(count)
    sequences[0, 3:5] = ~sequences[0, 3:5]  # not predicted
    labels = torch.randint(3, sequences.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    whole = heldout_loss(model, sequences, CPU, bf16=False)
    found = heldout_loss(model, sequences, CPU, bf16=False, labels=labels)
    assert (found.loss, found.tokens) == (whole.loss, whole.tokens)
    assert whole.by_value == ()
    assert sum(tokens for _, tokens in found.by_value) == whole.tokens
    assert sum(total for total, _ in found.by_value) == pytest.approx(whole.loss * whole.tokens, rel=1e-6)
    for label, (total, tokens) in enumerate(found.by_value):
        only = torch.where((labels == label) | (sequences < 0), sequences, ~sequences)
        alone = heldout_loss(model, only, CPU, bf16=False)
        assert alone.tokens == tokens
        assert alone.loss * tokens == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("count", [9, 12])
def test_a_held_out_loss_that_is_stopped_before_any_batch_continues_to_the_same_bits(count: int) -> None:
    model, sequences = small_model(initializer_range=0.2), random_sequences(count)
    labels = torch.randint(3, sequences.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    states: list[tuple[int, dict[str, torch.Tensor]]] = []
    sums = no_sums(labels)

    def keep(done: int) -> None:
        states.append((done, {name: one.clone() for name, one in sums.items()}))

    whole = heldout_loss(model, sequences, CPU, False, batch_size=4, between=keep, labels=labels, sums=sums)
    assert [done for done, _ in states] == [0, 4, 8]
    for done, state in [*states, (count, sums)]:
        assert heldout_loss(model, sequences, CPU, False, batch_size=4, labels=labels, done=done, sums=state) == whole
