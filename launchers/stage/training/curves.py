"""What a stage tells the world while it trains: curves for TensorBoard, progress for whoever watches."""

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.tensorboard import SummaryWriter

from retain.launchers.stage.failures import DIVERGED
from retain.lightning_modules.objective import HeldoutLoss, heldout_loss
from retain.lightning_modules.stage import StageModule
from retain.results.store.runs import Progress, Run
from retain.results.tensorboard.events import heldout_tag, training_tag
from retain.sweeps.base.errors import StageFailedError

LOG_EVERY = 10
"""Steps between the points of the training curves; the loss is read from the device only then."""

PROGRESS_EVERY_S = 1.0

Point = tuple[str, float, int, float]
"""Of a curve: tag, value, tokens seen, seconds since 1970."""


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
    """Training and held-out losses, learning rate, tokens per second, all against tokens seen; progress in state.json.

    `saved` is the `state()` that a resumed attempt goes on from: the event file is written anew from its points.
    """

    def __init__(self, run: Run, heldout: Heldout, heldout_every: int | None, saved: Mapping[str, Any] | None) -> None:
        self.run, self.heldout, self.heldout_every = run, heldout, heldout_every
        self.stage: str = run.spec()["stage"]
        recipe = heldout.module.recipe
        self.sequences, self.batch, self.length = recipe["sequences"], recipe["batch"], recipe["sequence_length"]
        self.steps = recipe["steps"]
        self.points: list[Point] = [tuple(point) for point in saved["points"]] if saved else []
        self.logged_step: int = saved["logged_step"] if saved else 0
        self.writer = _fresh_writer(run, self.points) if heldout.rank == 0 else None
        self.progress = Progress(total=self.sequences * self.length)
        self.timed_step, self.timed_at, self.told_at = 0, time.monotonic(), 0.0
        self.evaluated: dict[tuple[int, str], float] = {}

    def state(self) -> dict[str, Any]:
        """What a resumed attempt needs: JSON."""
        return {"points": list(self.points), "logged_step": self.logged_step}

    def tokens(self, step: int) -> int:
        """Tokens seen after so many steps."""
        return int(min(step * self.batch, self.sequences) * self.length)

    def heldout_loss(self, split: str, step: int) -> float:
        """A held-out loss after `step` steps (nats per token), evaluated once and put on its curve."""
        if (step, split) not in self.evaluated:
            begin = time.monotonic()
            self.enter("evaluating")
            self.evaluated = {point: loss for point, loss in self.evaluated.items() if point[0] == step}
            self.evaluated[step, split] = finite(self.heldout.loss(split).loss, f"held-out loss on {split}", step)
            self._add(heldout_tag(split), self.evaluated[step, split], step)
            self._flush()
            self.enter("training")
            self.timed_at += time.monotonic() - begin
        return self.evaluated[step, split]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.timed_step, self.timed_at = self.heldout.module.step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = self.heldout.module.step
        if step % LOG_EVERY == 0 or step == self.steps:
            self._log(trainer, step)
        if self.heldout_every and step % self.heldout_every == 0:
            for split in self.heldout.sequences:
                self.heldout_loss(split, step)
        if time.monotonic() - self.told_at > PROGRESS_EVERY_S:
            self._tell(step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._tell(self.heldout.module.step)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._tell(self.heldout.module.step)
        if self.writer:
            self.writer.close()

    def enter(self, phase: str) -> None:
        """Say what is done now; see `Progress.phase`."""
        self.progress = replace(self.progress, phase=phase)
        self._tell(self.heldout.module.step)

    def _tell(self, step: int) -> None:
        self.told_at = time.monotonic()
        self.progress = replace(self.progress, tokens=self.tokens(step))
        if self.writer:
            # A full disk is told by what cannot do without it: a state, or the results.
            with contextlib.suppress(OSError):
                self.run.save_state(replace(self.run.state(), progress=self.progress, heartbeat=time.time()))

    def _log(self, trainer: Trainer, step: int) -> None:
        module = self.heldout.module
        loss = float(trainer.strategy.reduce(module.loss_sum, reduce_op="mean")) / (step - self.logged_step)
        module.loss_sum = torch.zeros(())
        finite(loss, "training loss", step)
        now = time.monotonic()
        per_second = (self.tokens(step) - self.tokens(self.timed_step)) / max(now - self.timed_at, 1e-9)
        self.logged_step, self.timed_step, self.timed_at = step, step, now
        self.progress = replace(self.progress, loss=loss, tokens_per_second=per_second)
        self._add(training_tag(self.stage, "loss"), loss, step)
        self._add(training_tag(self.stage, "learning_rate"), module.learning_rate_at(step - 1), step)
        self._add(training_tag(self.stage, "tokens_per_second"), per_second, step)

    def _add(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, self.tokens(step), time.time()))
        if self.writer:
            self.writer.add_scalar(tag, value, self.tokens(step), self.points[-1][3])

    def _flush(self) -> None:
        """Let whoever reads the event file, such as a search, see it now: it is written every two minutes otherwise."""
        if self.writer:
            with contextlib.suppress(OSError):  # as in `_tell`
                self.writer.flush()


def finite(loss: float, name: str, step: int) -> float:
    """The loss, nats per token. Raises StageFailedError where it is none."""
    if not math.isfinite(loss):
        raise StageFailedError(f"diverged: the {name} is {loss} at step {step}; lower lr or lengthen warmup", DIVERGED)
    return loss


def _fresh_writer(run: Run, points: Iterable[Point]) -> SummaryWriter:
    """One event file in place of all that earlier attempts left, with the points that are still true."""
    old = list(run.folder.glob("events.*"))
    # purge_step makes a TensorBoard that is watching forget what it has read.
    writer = SummaryWriter(str(run.folder), purge_step=0)
    for tag, value, tokens, when in points:
        writer.add_scalar(tag, value, tokens, when)
    writer.flush()
    for path in old:
        path.unlink(missing_ok=True)
    return writer
