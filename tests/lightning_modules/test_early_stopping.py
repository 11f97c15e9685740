from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.objective import heldout_loss
from retain.lightning_modules.stage import StageModule
from tests.lightning_modules.tiny_models import RECIPE, random_sequences, small_model, steps_of, train

pytestmark = pytest.mark.filterwarnings("ignore")
LONG = RECIPE | {"sequences": 80, "steps": 10}


class Weights(Callback):
    """Keeps a copy of the weights after every step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.after[trainer.global_step] = {name: weight.clone() for name, weight in module.state_dict().items()}


def stopped(losses: dict[int, float], every: int, patience: int) -> tuple[StageModule, KeepBest, Weights]:
    """Train with the given held-out loss at each step."""
    module, weights = StageModule(small_model(), LONG), Weights()
    best = KeepBest(losses.__getitem__, every, patience, LONG["steps"])
    train(module, steps_of(LONG), weights, best)
    return module, best, weights


def has_weights(module: StageModule, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, weights[name]) for name, weight in module.state_dict().items())


def test_training_stops_when_patience_runs_out_and_the_best_weights_are_restored() -> None:
    module, best, weights = stopped({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1}, every=2, patience=2)
    assert list(weights.after) == list(range(1, 9))
    assert best.summary() == {"best_step": 4, "best_loss": 2.0}
    assert has_weights(module, weights.after[4])
    assert not has_weights(module, weights.after[8])


def test_patience_counts_consecutive_evaluations_without_a_new_best() -> None:
    losses = {2: 3.0, 4: 3.1, 6: 2.9, 8: 3.0, 10: 2.8}
    module, best, weights = stopped(losses, every=2, patience=2)
    assert max(weights.after) == 10
    assert best.summary() == {"best_step": 10, "best_loss": 2.8}
    assert has_weights(module, weights.after[10])


def test_a_loss_equal_to_the_best_is_not_a_new_best() -> None:
    module, best, weights = stopped({1: 1.0, 2: 1.0, 3: 1.0}, every=1, patience=2)
    assert max(weights.after) == 3
    assert best.summary()["best_step"] == 1
    assert has_weights(module, weights.after[1])


def test_evaluations_in_the_warmup_do_not_count_against_the_patience_but_may_be_the_best() -> None:
    losses = {1: 1.0, 2: 3.0, 3: 3.0, 4: 3.0, 5: 3.0, 6: 3.0}
    module, weights = StageModule(small_model(), LONG), Weights()
    best = KeepBest(losses.__getitem__, every=1, patience=2, steps=LONG["steps"], warmup=3)
    train(module, steps_of(LONG), weights, best)
    assert max(weights.after) == 5, "steps 4 and 5 are the first two without a new best after the warm-up"
    assert best.summary() == {"best_step": 1, "best_loss": 1.0}
    assert has_weights(module, weights.after[1])


def test_the_last_step_is_always_evaluated() -> None:
    module, best, weights = stopped({4: 2.0, 8: 1.9, 10: 1.8}, every=4, patience=3)
    assert best.summary()["best_step"] == 10
    assert has_weights(module, weights.after[10])


@pytest.mark.parametrize("every", [1, 3])
def test_the_final_weights_have_the_lowest_held_out_loss_of_all_evaluations(every: int) -> None:
    held = random_sequences(6, seed=9)
    module = StageModule(small_model(), LONG | {"lr": 0.05})
    seen: dict[int, float] = {}

    def evaluate(step: int) -> float:
        seen[step] = heldout_loss(module.model, held, torch.device("cpu"), bf16=False).loss
        return seen[step]

    best = KeepBest(evaluate, every, patience=2, steps=10)
    train(module, steps_of(LONG), best)
    assert best.summary()["best_loss"] == min(seen.values())
    assert evaluate(-1) == pytest.approx(best.summary()["best_loss"], abs=1e-12)


def test_early_stopping_resumes_with_its_best_weights_and_remaining_patience() -> None:
    losses = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1}
    _, first, weights = stopped(losses, every=2, patience=2)
    resumed = KeepBest({2: 2.2}.__getitem__, 2, 2, LONG["steps"])
    resumed.restore(first.state() | {"without_gain": 1}, dict(first.weights))
    module, after = StageModule(small_model(seed=5), LONG), Weights()
    train(module, steps_of(LONG), after, resumed)
    assert max(after.after) == 2, "one evaluation of patience was left"
    assert resumed.summary() == first.summary()
    assert has_weights(module, weights.after[4])


def test_keeping_the_best_weights_does_not_change_the_training() -> None:
    kept = stopped(dict.fromkeys(range(1, 11), 1.0) | {step: 10.0 - step for step in range(1, 11)}, 1, 3)[0]
    plain = StageModule(small_model(), LONG)
    train(plain, steps_of(LONG))
    assert has_weights(kept, plain.state_dict())
