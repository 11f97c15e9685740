"""The loss of DPO and its gradient, against a closed form and against autograd through transformers' own logits."""

import math

import pytest
import torch
from torch.nn import functional

from retain.lightning_modules.lora import add_adapters
from retain.lightning_modules.objective import CHUNK_TOKENS
from retain.lightning_modules.preferences.dpo import (
    heldout_preferences,
    log_probabilities,
    margins,
    summed_preference_loss,
)
from retain.lightning_modules.stage import StageModule
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, random_sequences, small_model, train

BETA = 0.3
CPU = torch.device("cpu")


def random_pairs(count: int, seed: int = 0, prompt: int = 5, padding: int = 3) -> torch.Tensor:
    """Pairs with a common prompt each, which is not predicted, and different lengths of padding."""
    pairs = random_sequences(2 * count, seed)
    pairs[1::2, :prompt] = pairs[0::2, :prompt]
    pairs[:, :prompt] = ~pairs[:, :prompt]
    for number, row in enumerate(pairs):
        row[LENGTH - number % (padding + 1) :] = ~torch.tensor(0)
    return pairs


def by_autograd(model: torch.nn.Module, pairs: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """The DPO loss summed over pairs as the paper writes it, from the logits of transformers."""
    tokens = torch.where(pairs < 0, ~pairs, pairs)
    logits = functional.log_softmax(model(input_ids=tokens).logits[:, :-1], dim=-1)
    chosen = logits.gather(2, tokens[:, 1:, None]).squeeze(2)
    log_p = (chosen * (pairs[:, 1:] >= 0)).sum(dim=1)
    total = pairs.new_zeros((), dtype=torch.float64)
    for number in range(0, len(pairs), 2):
        ratio_chosen = log_p[number] - reference[number]
        ratio_rejected = log_p[number + 1] - reference[number + 1]
        total = total - functional.logsigmoid(beta * (ratio_chosen - ratio_rejected))
    return total


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_autograd_for_any_chunk_size(
    tied: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHUNK_TOKENS, "cpu", chunk)
    model, pairs = small_model(initializer_range=0.2, tied=tied).double(), random_pairs(4)
    reference = -10 * torch.rand(8, dtype=torch.float64)
    theirs = by_autograd(model, pairs, reference, BETA)
    ours = summed_preference_loss(model, pairs, reference, BETA)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True)
    for one, two in gradients:
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_at_the_start_the_loss_is_log_2_and_the_gradient_half_of_beta_times_that_of_the_margin() -> None:
    model, pairs = small_model(initializer_range=0.2).double(), random_pairs(3)
    reference = log_probabilities(model, pairs)
    loss = summed_preference_loss(model, pairs, reference, BETA)
    assert loss.item() == pytest.approx(3 * math.log(2), rel=1e-12)
    parameters = list(model.parameters())
    own = torch.autograd.grad(loss, parameters)
    # β/2 times the gradient of log π(rejected) - log π(chosen).
    signs = torch.tensor([-1.0, 1.0]).repeat(3).double()
    tokens = torch.where(pairs < 0, ~pairs, pairs)
    log_p = functional.log_softmax(model(input_ids=tokens).logits[:, :-1], dim=-1).gather(2, tokens[:, 1:, None])
    slope = (signs * (log_p.squeeze(2) * (pairs[:, 1:] >= 0)).sum(dim=1)).sum() * BETA / 2
    for one, two in zip(own, torch.autograd.grad(slope, parameters), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_log_probabilities_are_sums_over_the_response_whatever_the_padding() -> None:
    model, pairs = small_model(initializer_range=0.2), random_pairs(3, padding=0)
    found = log_probabilities(model, pairs)
    longer = functional.pad(pairs, (0, 5), value=-1)
    torch.testing.assert_close(log_probabilities(model, longer), found)
    assert (found < -(LENGTH - 5) * 1.0).all()  # a mean over tokens would be near -log 96
    assert found.dtype == torch.float64


def test_a_step_does_not_depend_on_the_micro_batch() -> None:
    recipe = RECIPE | {"batch": 8, "sequences": 20, "steps": 3, "objective": {"dpo": BETA}}
    pairs = random_pairs(10)
    reference = log_probabilities(small_model(1), pairs)

    def trained(micro_batch: int | None) -> list[torch.Tensor]:
        module = StageModule(small_model(), recipe, micro_batch)
        batches = list(zip(pairs.split(8), reference.split(8), strict=True))
        train(module, batches)  # type: ignore[arg-type]
        assert module.step == 3
        assert module.loss_sum.item() > 0
        return [parameter.detach() for parameter in module.model.parameters()]

    whole = trained(None)
    for micro_batch in (1, 2, 3, 4):  # of 1 and 3 sequences, one whole pair is computed at a time
        for one, two in zip(whole, trained(micro_batch), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_the_training_loss_of_the_first_step_is_log_2_with_new_adapters_too() -> None:
    model = small_model(initializer_range=0.2)
    pairs = random_pairs(4)
    reference = log_probabilities(model, pairs)
    add_adapters(model, {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "lm_head"]}, 0)
    recipe = RECIPE | {"sequences": 8, "steps": 1, "warmup": 0, "objective": {"dpo": BETA}}
    module = StageModule(model, recipe)
    train(module, [(pairs, reference)])  # type: ignore[list-item]
    assert module.loss_sum.item() == pytest.approx(math.log(2), rel=1e-5)
    risen = margins(log_probabilities(model, pairs), reference)
    assert risen.mean() > 0


def test_held_out_pairs_give_loss_accuracy_and_margin_for_any_batch() -> None:
    model, pairs = small_model(initializer_range=0.2), random_pairs(7)
    reference = log_probabilities(small_model(3, initializer_range=0.2), pairs)
    margin = margins(log_probabilities(model, pairs), reference)
    for size in (1, 3, 8):
        found = heldout_preferences(model, pairs, reference, BETA, CPU, False, batch_size=size)
        assert found.pairs == 7
        assert found.margin == pytest.approx(margin.mean().item(), rel=1e-5)
        assert found.accuracy == pytest.approx((margin > 0).double().mean().item())
        assert found.loss == pytest.approx(-functional.logsigmoid(BETA * margin).mean().item(), rel=1e-5)
    assert 0 < found.accuracy < 1
    assert model.training
