"""What a stage tells the world while it trains: curves for TensorBoard, progress for whoever watches."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from lightning_modules.objective import HeldoutLoss, heldout_loss
from lightning_modules.stage import StageModule
from results.store import Progress, Run
from sweeps.errors import StageFailedError

LOG_EVERY = 10
"""Steps between the points of the training curves; the loss is read from the device only then."""

PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Heldout:
    """The held-out splits that a stage is judged on, by role, and how they are evaluated."""

    sequences: Mapping[str, torch.Tensor]
    module: StageModule
    bf16: bool
    rank: int
    world: int

    def loss(self, split: str) -> HeldoutLoss:
        model = self.module.model
        return heldout_loss(model, self.sequences[split], model.device, self.bf16, self.rank, self.world)


class Curves(Callback):
    """Training and held-out losses, learning rate, tokens per second, all against tokens seen; progress in state.json."""

    def __init__(self, run: Run, heldout: Heldout, heldout_every: int | None) -> None:
        self.run, self.heldout, self.heldout_every = run, heldout, heldout_every
        self.writer = SummaryWriter(str(run.folder)) if heldout.rank == 0 else None
        recipe = heldout.module.recipe
        self.sequences, self.batch, self.length = recipe["sequences"], recipe["batch"], recipe["sequence_length"]
        self.steps = recipe["steps"]
        self.progress = Progress(total=self.sequences * self.length)
        self.logged_step, self.logged_at, self.told_at = 0, time.monotonic(), 0.0
        self.evaluated: dict[tuple[int, str], float] = {}

    def tokens(self, step: int) -> int:
        """Tokens seen after so many steps."""
        return int(min(step * self.batch, self.sequences) * self.length)

    def heldout_loss(self, split: str, step: int) -> float:
        """A held-out loss after `step` steps (nats per token), evaluated once and put on its curve."""
        if (step, split) not in self.evaluated:
            begin = time.monotonic()
            self.evaluated = {point: loss for point, loss in self.evaluated.items() if point[0] == step}
            self.evaluated[step, split] = self.heldout.loss(split).loss
            self._add(f"heldout/{split}", self.evaluated[step, split], step)
            self.logged_at += time.monotonic() - begin
        return self.evaluated[step, split]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.logged_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = trainer.global_step
        if step % LOG_EVERY == 0 or step == self.steps:
            self._log(trainer, step)
        if self.heldout_every and step % self.heldout_every == 0:
            for split in self.heldout.sequences:
                self.heldout_loss(split, step)
        if self.writer and time.monotonic() - self.told_at > PROGRESS_EVERY_S:
            self.told_at = time.monotonic()
            self.progress = replace(self.progress, tokens=self.tokens(step))
            self.run.save_state(replace(self.run.state(), progress=self.progress, heartbeat=time.time()))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.progress = replace(self.progress, tokens=self.tokens(trainer.global_step))
        if self.writer:
            self.run.save_state(replace(self.run.state(), progress=self.progress, heartbeat=time.time()))

    def _log(self, trainer: Trainer, step: int) -> None:
        module = self.heldout.module
        steps, now = step - self.logged_step, time.monotonic()
        loss = float(trainer.strategy.reduce(module.loss_sum, reduce_op="mean")) / steps
        module.loss_sum = torch.zeros(())
        if not math.isfinite(loss):
            raise StageFailedError(f"diverged: the training loss is {loss} at step {step}; lower lr or lengthen warmup")
        per_second = (self.tokens(step) - self.tokens(self.logged_step)) / (now - self.logged_at)
        self.logged_step, self.logged_at = step, now
        self.progress = replace(self.progress, loss=loss, tokens_per_second=per_second)
        self._add("train/loss", loss, step)
        self._add("train/learning_rate", module.rate(step - 1), step)
        self._add("train/tokens_per_second", per_second, step)

    def _add(self, tag: str, value: float, step: int) -> None:
        if self.writer:
            self.writer.add_scalar(tag, value, self.tokens(step))
