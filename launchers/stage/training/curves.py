"""What a stage reports while it trains: curves for the store and the loggers, progress for `retain status`."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.log import log_line
from retain.launchers.stage.reporting.by_value import SplitLabels
from retain.launchers.stage.reporting.energy import EnergyMeter
from retain.launchers.stage.reporting.loggers import Loggers
from retain.launchers.stage.training.preferences import HeldoutPairs
from retain.lightning_modules.objective import HeldoutLoss, heldout_loss
from retain.lightning_modules.preferences.dpo import Preferences
from retain.lightning_modules.stage import StageModule
from retain.results.store.curves import CurveWriter, Point, heldout_curve, training_curve
from retain.results.store.state import Progress
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.base.units import format_size
from retain.sweeps.tree.key_diff import stage_name

LOG_EVERY = 10
"""Steps between the points of the training curves by default. The loss is read from the device only at these steps."""
FEWEST_POINTS = 10
"""A stage has at least so many points by default, or one for each step."""
LINE_EVERY_S = 1.0
"""Seconds between two lines of a run's log, so that the log of a long run of fast steps stays short."""
REPORT_EVERY_S = 1.0


@dataclass(frozen=True)
class Heldout:
    """The held-out splits of a stage, by role, and how they are evaluated."""

    sequences: Mapping[str, torch.Tensor]
    others: Mapping[str, torch.Tensor]
    """Further splits, by the name of their corpus: those of the final weights alone."""
    module: StageModule
    bf16: bool
    rank: int
    world: int
    labels: Mapping[str, SplitLabels] = field(default_factory=dict)
    """The values of the splits of corpora with `by`."""
    pairs: Mapping[str, HeldoutPairs] = field(default_factory=dict)
    """The held-out pairs on which the final weights are measured, by the fingerprint of the corpus."""
    objective: Mapping[str, HeldoutPairs] = field(default_factory=dict)
    """The held-out pairs on which a stage that learns from pairs is measured meanwhile, by the name of its DPO loss."""
    between: Callable[[int], None] = lambda done: None
    """Called before each batch of an evaluation; it may raise to stop it."""

    def loss(self, split: str, by_value: bool = False) -> HeldoutLoss:
        """The loss of the current weights on a split: nats per token, or of a DPO loss per pair. by_value: whether it is also
        given by value."""
        model, end_of_text = self.module.model, self.module.end_of_text
        if split in self.objective:
            found = self.preferences(self.objective[split])
            return HeldoutLoss(found.loss, found.pairs)
        sequences = self.sequences[split] if split in self.sequences else self.others[split]
        labels = self.labels[split].numbers if by_value and split in self.labels else None
        return heldout_loss(
            model,
            sequences,
            model.device,
            self.bf16,
            self.rank,
            self.world,
            end_of_text=end_of_text,
            between=self.between,
            labels=labels,
        )

    def preferences(self, pairs: HeldoutPairs) -> Preferences:
        """What the current weights prefer on held-out pairs."""
        module = self.module
        return pairs.preferences(module.model, self.bf16, self.rank, self.world, module.end_of_text, self.between)


class Curves(Callback):
    """Records training and held-out losses, learning rate and tokens per second over tokens seen, and reports progress.

    saved: the `state()` in the checkpoint that the attempt resumes from; the curves continue its points. log_every: steps
    between two points; by default `LOG_EVERY`, and fewer in a short stage. energy: counts the attempt's.
    """

    def __init__(
        self,
        context: AttemptContext,
        heldout: Heldout,
        heldout_every: int | None,
        saved: Mapping[str, Any] | None,
        log_every: int | None = None,
        energy: EnergyMeter | None = None,
    ) -> None:
        self.context, self.heldout, self.heldout_every, self.energy = context, heldout, heldout_every, energy
        self.stage, run = stage_name(context.spec), context.run
        recipe = heldout.module.recipe
        self.sequences, self.batch, self.length = recipe["sequences"], recipe["batch"], recipe["sequence_length"]
        self.steps = recipe["steps"]
        self.log_every = log_every or max(1, min(LOG_EVERY, self.steps // FEWEST_POINTS))
        points = [Point(curve, tokens, value, when) for curve, value, tokens, when in saved["points"]] if saved else []
        self.logged_step: int = saved["logged_step"] if saved else 0
        self.file = CurveWriter(run.folder, points) if heldout.rank == 0 else None
        self.loggers = Loggers(run, points, self.step_of) if heldout.rank == 0 else None
        self.progress = Progress(total=self.sequences * self.length)
        self.timed_step, self.timed_at, self.reported_at, self.printed_at = -1, 0.0, 0.0, -LINE_EVERY_S
        self.evaluated = {(self.step_of(point.tokens), point.curve): point.value for point in points}
        """The held-out losses by step and curve: those of the latest step are not computed again."""

    def state(self) -> dict[str, Any]:
        """The points so far, as JSON for a checkpoint. For rank 0."""
        assert self.file is not None
        points = [(point.curve, point.value, point.tokens, point.time) for point in self.file.points]
        return {"points": points, "logged_step": self.logged_step}

    def tokens(self, step: int) -> int:
        """Tokens seen after a number of steps."""
        return int(min(step * self.batch, self.sequences) * self.length)

    def step_of(self, tokens: int) -> int:
        """The number of steps after which a stage has seen tokens: the inverse of `tokens`."""
        return int(-(-tokens // (self.batch * self.length)))

    def heldout_loss(self, split: str, step: int) -> float:
        """The held-out loss after `step` steps, as in `Heldout.loss`, evaluated once and added to its curve."""
        curve = heldout_curve(split)
        if (step, curve) not in self.evaluated:
            self._begin(step)
            self._log_if_due(step)
            began = time.monotonic()
            self.enter("evaluating")
            loss = finite(self.heldout.loss(split).loss, f"held-out loss on {split}", step)
            self.evaluated = {point: known for point, known in self.evaluated.items() if point[0] == step}
            self.evaluated[step, curve] = loss
            self._add(curve, loss, step)
            self._print(f"step {step}/{self.steps}  held-out loss on {split} {loss:.4f}")
            if self.loggers:
                self.loggers.flush()
            self.enter("training")
            self.timed_at += time.monotonic() - began
        return self.evaluated[step, curve]

    def has_loss(self, split: str, step: int) -> bool:
        """Whether the held-out loss after `step` steps is known already."""
        return (step, heldout_curve(split)) in self.evaluated

    def finish(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """Complete the curves, and give the loggers the final losses (nats per token) and hyperparameters. For rank 0."""
        assert self.file is not None
        assert self.loggers is not None
        self.file.rewrite()
        self.loggers.add_results(hyperparameters, losses)
        self.loggers.close()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        # At the first step of the attempt: by then a checkpoint has been restored, whose steps another attempt has trained.
        self._begin(self.heldout.module.step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        step = self.heldout.module.step
        self._begin(step)
        self._log_if_due(step)
        if self.heldout_every and step % self.heldout_every == 0:
            for split in (*self.heldout.sequences, *self.heldout.objective):
                self.heldout_loss(split, step)
        if time.monotonic() - self.reported_at > REPORT_EVERY_S:
            self._report(step)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._report(self.heldout.module.step)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._report(self.heldout.module.step)
        if self.loggers:
            self.loggers.close()

    def enter(self, phase: str) -> None:
        """Report the present phase of the attempt; see `Progress.phase`."""
        self.progress = replace(self.progress, phase=phase)
        self._report(self.heldout.module.step)

    def _report(self, step: int) -> None:
        self.reported_at = time.monotonic()
        self.progress = replace(self.progress, tokens=self.tokens(step))
        if self.file:
            if self.energy:
                self.progress = replace(self.progress, joules=self.energy.joules())
            # Ignore a full disk here: it fails the run at the next checkpoint, or when the results are written.
            with contextlib.suppress(OSError):
                self.context.report(self.progress)

    def _begin(self, step: int) -> None:
        """Say once where the attempt begins, and time it from there."""
        if self.timed_step >= 0:
            return
        self.timed_step, self.timed_at = step, time.monotonic()
        total = f"{self.steps}, {format_size(self.tokens(self.steps))} tokens"
        if step:
            # Lines of steps that were trained after the checkpoint stay in the log.
            self._print(f"resumes after step {step}/{total}; lines above of later steps no longer count")
        else:
            self._print(f"steps to train: {total}")

    def _log_if_due(self, step: int) -> None:
        """Add the points of a step of this attempt to the training curves, once."""
        if step > max(self.logged_step, self.timed_step) and (step % self.log_every == 0 or step == self.steps):
            self._log(self.heldout.module.trainer, step)

    def _log(self, trainer: Trainer, step: int) -> None:
        module = self.heldout.module
        loss = float(trainer.strategy.reduce(module.loss_sum, reduce_op="mean")) / (step - self.logged_step)
        module.loss_sum = torch.zeros(())
        finite(loss, "training loss", step)
        now = time.monotonic()
        per_second = (self.tokens(step) - self.tokens(self.timed_step)) / max(now - self.timed_at, 1e-9)
        self.logged_step, self.timed_step, self.timed_at = step, step, now
        self.progress = replace(self.progress, loss=loss, tokens_per_second=per_second)
        self._add(training_curve(self.stage, "loss"), loss, step)
        self._add(training_curve(self.stage, "learning_rate"), module.learning_rate_at(step - 1), step)
        self._add(training_curve(self.stage, "tokens_per_second"), per_second, step)
        if step == self.steps or now - self.printed_at >= LINE_EVERY_S:
            self.printed_at = now
            self._print(
                f"step {step}/{self.steps}  tokens {format_size(self.tokens(step))}  loss {loss:.4f}  "
                f"lr {module.learning_rate_at(step - 1):.3g}  {format_size(per_second)} tokens/s"
            )

    def _print(self, line: str) -> None:
        """Add a line to the run's log, on rank 0."""
        if self.file:
            log_line(line)

    def _add(self, curve: str, value: float, step: int) -> None:
        """Add a point to a curve, on rank 0."""
        point = Point(curve, self.tokens(step), value, time.time())
        if self.file and self.loggers:
            with contextlib.suppress(OSError):  # as in `_report`
                self.file.add(point)
            self.loggers.add(point)


def finite(loss: float, name: str, step: int) -> float:
    """The loss (nats per token). Raises StageFailedError if it is NaN or infinite."""
    if not math.isfinite(loss):
        raise StageFailedError(f"diverged: the {name} is {loss} at step {step}; lower lr or lengthen warmup", DIVERGED)
    return loss
