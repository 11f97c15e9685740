"""Early stopping on a held-out loss, keeping the best weights (paper, Section 3: Stage 2)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class KeepBest(Callback):
    """Evaluates every so many steps, stops after `patience` evaluations without a new best, restores the best weights.

    The last step of the stage is always evaluated, so the best of all that was trained is kept.
    """

    def __init__(self, evaluate: Callable[[int], float], every: int, patience: int, steps: int) -> None:
        self.evaluate, self.every, self.patience, self.steps = evaluate, every, patience, steps
        self.best_loss = float("inf")
        self.best_step = 0
        self.without_gain = 0
        self.best_weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if step % self.every and step != self.steps:
            return
        loss = self.evaluate(step)
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.without_gain = loss, step, 0
            self.best_weights = {name: weight.detach().cpu().clone() for name, weight in module.state_dict().items()}
        else:
            self.without_gain += 1
            if self.without_gain >= self.patience:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.best_weights:
            module.load_state_dict(self.best_weights)

    def summary(self) -> Mapping[str, float]:
        """Where the best weights were found: step and held-out loss (nats per token)."""
        return {"best_step": self.best_step, "best_loss": self.best_loss}
