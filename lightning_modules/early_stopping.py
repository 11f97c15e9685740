"""Early stopping on a held-out loss, keeping the best weights (paper, Section 3, Stage 2)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.shards import local_part
from retain.lightning_modules.stage import StageModule


class KeepBest(Callback):
    """Evaluates every `every` steps, stops after `patience` evaluations without a new best, restores the best weights.

    evaluate: returns the held-out loss at a step. The last step of the stage is always evaluated, so the weights kept are
    the best of the whole stage. warmup: evaluations up to this step do not count against the patience. counted: whether the
    state that was restored counts the evaluation at a step already.
    """

    def __init__(
        self,
        evaluate: Callable[[int], float],
        every: int,
        patience: int,
        steps: int,
        warmup: int = 0,
        counted: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.evaluate, self.every, self.patience, self.steps = evaluate, every, patience, steps
        self.warmup, self.counted = warmup, counted
        self.loss: float | None = None
        self.step = 0
        self.without_gain = 0
        """Evaluations since the best one, without those of the warm-up."""
        self.weights: dict[str, torch.Tensor] = {}
        """This rank's rows of the best weights, trained parameters only, on the CPU."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, StageModule)
        step = module.step
        if (step % self.every and step != self.steps) or self.counted(step):
            return
        loss = self.evaluate(step)
        if self.loss is None or loss < self.loss:
            self.loss, self.step, self.without_gain = loss, step, 0
            trained = trained_parameters(module.model)
            self.weights = {name: local_part(weight).detach().cpu().clone() for name, weight in trained}
        elif step > self.warmup:
            self.without_gain += 1
            if self.is_over:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, StageModule)
        with torch.no_grad():
            for name, parameter in trained_parameters(module.model):
                if name in self.weights:
                    local_part(parameter).copy_(self.weights[name])

    @property
    def is_over(self) -> bool:
        """Whether the stage has been stopped early."""
        return self.without_gain >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what a resumed stage needs besides the best weights."""
        return {"loss": self.loss, "step": self.step, "without_gain": self.without_gain}

    def restore(self, state: Mapping[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Resume from an earlier `state()` and its best weights."""
        self.loss, self.step, self.without_gain = state["loss"], state["step"], state["without_gain"]
        self.weights = weights

    def summary(self) -> Mapping[str, float]:
        """Return the step and the held-out loss (nats per token) of the best weights."""
        assert self.loss is not None
        return {"best_step": self.step, "best_loss": self.loss}
