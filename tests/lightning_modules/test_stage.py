from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from retain.lightning_modules.anchors.fisher import add_squares, information_per_token, no_squares
from retain.lightning_modules.models import add_dropout
from retain.lightning_modules.objective import model_inputs, next_token_losses, summed_loss
from retain.lightning_modules.stage import StageModule
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, Waits, small_model, steps_of, train

pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(Callback):
    """Records the clipped gradients and the learning rates of every step."""

    def __init__(self) -> None:
        self.gradients: list[list[torch.Tensor]] = []
        self.rates: list[set[float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append([parameter.grad.clone() for parameter in module.parameters()])
        self.rates.append({group["lr"] for group in optimizer.param_groups})


def trained(micro_batch: int | None = None, fisher: Path | None = None, **fields: Any) -> tuple[StageModule, Seen]:
    recipe = RECIPE | fields
    module, seen = StageModule(small_model(initializer_range=0.2), recipe, micro_batch, fisher=fisher), Seen()
    train(module, steps_of(recipe), seen)
    return module, seen


def take_steps(model: Any, optimizer: torch.optim.Optimizer, penalty: Callable[[], Any] = lambda: 0.0) -> None:
    """Take the steps of the recipe with transformers' loss, plus a penalty."""
    for batch, rate in zip(steps_of(RECIPE), [0.005, 0.01, 0.0055, 0.001], strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        (model(input_ids=batch, labels=batch).loss + penalty()).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def assert_equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for ours, exact in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 8, 100])
def test_a_micro_batch_does_not_change_the_gradients_not_even_in_a_smaller_last_step(micro_batch: int) -> None:
    frozen = {"lr": 1e-12, "min_lr": 0.0, "clip": 1e9}
    _, whole = trained(**frozen)
    _, parts = trained(micro_batch, **frozen)
    assert len(whole.gradients) == len(parts.gradients) == 4
    for one, two in zip(whole.gradients, parts.gradients, strict=True):
        for exact, summed in zip(one, two, strict=True):
            torch.testing.assert_close(summed, exact, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_a_step_is_that_of_the_mean_loss_over_its_batch() -> None:
    _, seen = trained(3, lr=1e-12, min_lr=0.0, clip=1e9)
    model = small_model(initializer_range=0.2)
    for batch, gradients in zip(steps_of(RECIPE), seen.gradients, strict=True):
        mean = summed_loss(model, batch) / (len(batch) * (LENGTH - 1))
        for ours, exact in zip(gradients, torch.autograd.grad(mean, list(model.parameters())), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


def test_a_stage_takes_the_adamw_steps_of_its_recipe() -> None:
    module, _ = trained()
    model = small_model(initializer_range=0.2)
    matrices = [parameter for name, parameter in model.named_parameters() if "proj" in name]
    others = [parameter for name, parameter in model.named_parameters() if "proj" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    take_steps(model, optimizer)
    assert_equal_weights(module.model, model)


def test_every_step_uses_the_learning_rate_of_the_schedule() -> None:
    module, seen = trained()
    assert seen.rates == [{module.learning_rate_at(step)} for step in range(4)]
    assert [module.learning_rate_at(step) for step in range(4)] == pytest.approx([0.005, 0.01, 0.0055, 0.001])


def test_gradients_are_clipped_to_the_norm_in_the_recipe() -> None:
    _, seen = trained(clip=0.01)
    for gradients in seen.gradients:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
        assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_loss_sum_is_the_sum_of_the_mean_losses_of_the_steps() -> None:
    module, _ = trained(lr=1e-12, min_lr=0.0)
    model = small_model(initializer_range=0.2)
    with torch.no_grad():
        means = [model(input_ids=batch, labels=batch).loss.item() for batch in steps_of(RECIPE)]
    assert module.loss_sum.item() == pytest.approx(sum(means), rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_is_bit_reproducible(dropout: float) -> None:
    first, _ = trained(dropout=dropout)
    torch.manual_seed(12345)
    again, _ = trained(dropout=dropout)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))


def test_the_seed_changes_the_training_only_through_dropout() -> None:
    first, other = (trained(dropout=0.1, seed=seed)[0] for seed in (1, 2))
    assert any(not torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))
    first, other = (trained(seed=seed)[0] for seed in (1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))


def test_training_lowers_the_training_loss() -> None:
    recipe = RECIPE | {"sequences": 40 * 8, "steps": 40}
    module = StageModule(small_model(), recipe)
    batch = steps_of(RECIPE)[0]
    before = next_token_losses(module.model, batch).mean().item()
    train(module, [batch] * 40)
    assert next_token_losses(module.model, batch).mean().item() < 0.7 * before


def test_muon_steps_are_those_of_torch_for_hidden_matrices_and_adamws_for_the_rest() -> None:
    recipe = RECIPE | {"optimizer": "muon"}
    module = StageModule(small_model(initializer_range=0.2, tied=False), recipe)
    train(module, steps_of(recipe))
    model = small_model(initializer_range=0.2, tied=False)
    named = dict(model.named_parameters())
    hidden = [weight for name, weight in named.items() if "proj" in name]
    head = [named["lm_head.weight"]]
    others = [weight for name, weight in named.items() if "proj" not in name and name != "lm_head.weight"]
    muon = torch.optim.Muon(hidden, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": head, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for batch, rate in zip(steps_of(recipe), [0.005, 0.01, 0.0055, 0.001], strict=True):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = rate
        model(input_ids=batch, labels=batch).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for ours, exact in zip(module.model.parameters(), model.parameters(), strict=True):
        # Muon orthogonalises in bf16.
        torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-3)


def test_with_decay_all_norms_and_embeddings_decay_too() -> None:
    # Gradients clipped to almost nothing leave the decay alone.
    fields = {"clip": 1e-30, "lr": 1e-2, "min_lr": 1e-2, "warmup": 0, "weight_decay": 1.0}
    before = dict(small_model(initializer_range=0.2).named_parameters())
    for decay in ("matrices", "all"):
        module, _ = trained(**fields, decay=decay)
        for name, weight in module.model.named_parameters():
            share = 0.99**4 if decay == "all" or "proj" in name else 1.0
            torch.testing.assert_close(weight, before[name] * share, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("anchor", [{"l2sp": 0.5}, {"ewc": 3.0}, {"l2sp": 0.5, "ewc": 3.0}])
def test_an_anchored_stage_takes_the_adamw_steps_of_the_loss_with_the_penalty(
    anchor: dict[str, float], tmp_path: Path
) -> None:
    model = small_model(initializer_range=0.2)
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    draw = torch.Generator().manual_seed(0)
    information = {name: torch.rand(one.shape, generator=draw) for name, one in start.items()}
    save_file(information, tmp_path / "fisher.safetensors")
    module, _ = trained(fisher=tmp_path / "fisher.safetensors", anchor=anchor, weight_decay=0.0)

    def penalty() -> torch.Tensor:
        parts = [
            (
                (anchor.get("l2sp", 0.0) + anchor.get("ewc", 0.0) * information[name]) / 2 * (one - start[name]) ** 2
            ).sum()
            for name, one in model.named_parameters()
        ]
        return torch.stack(parts).sum()

    take_steps(model, torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0), penalty)
    assert_equal_weights(module.model, model)
    with pytest.raises(AssertionError):
        assert_equal_weights(trained(weight_decay=0.0)[0].model, model)


def test_a_strong_anchor_keeps_the_weights_near_those_at_the_start() -> None:
    def moved(**fields: Any) -> float:
        module, start = trained(weight_decay=0.0, **fields)[0], small_model(initializer_range=0.2)
        pairs = zip(module.model.parameters(), start.parameters(), strict=True)
        return float(sum(((one - old) ** 2).sum() for one, old in pairs))

    assert moved(anchor={"l2sp": 1e3}) < 0.5 * moved()


@pytest.mark.parametrize(
    "fields",
    [{}, {"dropout": 0.1}, {"anchor": {"l2sp": 0.1}}, {"schedule": {"wsd": 2}}],
    ids=["plain", "dropout", "anchor", "wsd"],
)
@pytest.mark.parametrize("end_of_text", [None, 7])
def test_a_step_waits_for_one_value_of_the_gpu_a_micro_batch(fields: dict[str, Any], end_of_text: int | None) -> None:
    recipe = RECIPE | fields
    waits = Waits()

    class Watched(StageModule):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            with waits:
                super().training_step(batch, batch_idx)

    module = Watched(small_model(), recipe, 3, end_of_text=end_of_text, masked=True)
    train(module, [torch.where(batch % 3 == 0, ~batch, batch) for batch in steps_of(recipe)])
    assert module.step == 4
    # transformers asks once for each micro-batch whether it holds several documents.
    assert len(waits.found) == 3 + 3 + 3 + 1


def test_reading_a_value_counts_as_waiting() -> None:
    with Waits() as waits:
        assert torch.ones(2).sum().item() == 2
        assert torch.ones(2).any()
    assert len(waits.found) == 2


def estimate(
    model: PreTrainedModel, sequences: torch.Tensor, end_of_text: int | None = None
) -> dict[str, torch.Tensor]:
    squares = no_squares(model)
    assert list(add_squares(model, sequences, squares, end_of_text=end_of_text)) == list(range(1, len(sequences) + 1))
    return information_per_token(squares, sequences)


@pytest.mark.parametrize("end_of_text", [None, 7])
@pytest.mark.parametrize("tied", [True, False])
def test_the_fisher_information_is_the_squared_gradient_of_each_sequence_by_autograd(
    tied: bool, end_of_text: int | None
) -> None:
    model = small_model(initializer_range=0.2, tied=tied)
    add_dropout(model, 0.5)
    sequences = steps_of(RECIPE)[0][:4]
    sequences[1, 3:9] = ~sequences[1, 3:9]  # tokens of a prompt, which are not predicted
    sequences[2] = ~sequences[2]  # nothing at all is predicted
    sequences[0, 5] = 7
    found = estimate(model, sequences, end_of_text)
    model.eval()  # without dropout
    exact = {name: torch.zeros_like(one) for name, one in model.named_parameters()}
    for sequence in sequences:
        inputs = model_inputs(sequence[None], end_of_text)
        scores = model(**inputs).logits[0, :-1].log_softmax(-1)
        kept = sequence[1:] >= 0
        likelihood = scores[kept, sequence[1:][kept]].sum()
        for (name, _), one in zip(
            model.named_parameters(), torch.autograd.grad(likelihood, list(model.parameters())), strict=True
        ):
            exact[name] += one**2
    count = 3 * (LENGTH - 1) - 6
    assert found.keys() == exact.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, exact[name] / count, rtol=1e-3, atol=1e-7)


def test_the_fisher_information_of_the_head_is_that_of_logistic_regression() -> None:
    """With one prediction in each sequence: the mean of ((p_v - y_v) h_j)², with the last hidden state h and its target y."""
    model = small_model(initializer_range=0.2, tied=False)
    sequences = steps_of(RECIPE)[0][:, :2]
    found = estimate(model, sequences)["lm_head.weight"]
    with torch.no_grad():
        hidden = model.model(input_ids=sequences[:, :1]).last_hidden_state[:, 0]
        errors = (hidden @ model.lm_head.weight.T).softmax(-1)
        errors[torch.arange(len(sequences)), sequences[:, 1]] -= 1
    torch.testing.assert_close(found, (errors**2).T @ hidden**2 / len(sequences), rtol=1e-3, atol=1e-8)


def test_squares_that_are_added_in_two_calls_have_the_bits_of_one() -> None:
    model, sequences = small_model(initializer_range=0.2), steps_of(RECIPE)[0]
    squares = no_squares(model)
    for part in (sequences[:3], sequences[3:]):
        assert len(list(add_squares(model, part, squares))) == len(part)
    whole = estimate(model, sequences)
    assert all(torch.equal(one, whole[name]) for name, one in information_per_token(squares, sequences).items())
