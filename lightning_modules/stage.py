"""The LightningModule of a stage: one global batch is one optimiser step, for any number of ranks and micro-batches."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from retain.lightning_modules.anchors.pull import Anchor
from retain.lightning_modules.compiled import attend_by_flex_attention, compile_layers, uncompiled
from retain.lightning_modules.models import add_dropout
from retain.lightning_modules.objective import compiled_loss_and_gradient, loss_and_gradient, predictions, summed_loss
from retain.lightning_modules.optimisation import optimizers_of, rate_of_recipe
from retain.lightning_modules.preferences.dpo import summed_preference_loss
from retain.lightning_modules.shards import shard_model
from retain.sweeps.tree.recipes.preference import PAIR

Batch = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Sequences, int64 [sequences, length]; or pairs, and the reference log-probabilities of their sequences."""


class StageModule(LightningModule):
    """Trains a model on the next-token loss, or on the objective of its recipe, by a stage's recipe.

    Optimisation is manual, so that one Lightning batch is one step. So the step counter gives the position in the data, and
    the gradient of a step is that of the mean loss over its global batch, also if the last batch is smaller.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Mapping[str, Any],
        micro_batch: int | None = None,
        sharded: bool = False,
        compiled: bool = False,
        end_of_text: int | None = None,
        masked: bool = False,
        flex_attention: bool = False,
        checkpointing: bool = False,
        fisher: Path | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.recipe = recipe
        self.unit = PAIR if "objective" in recipe else 1
        """The sequences that are computed together: a pair, or one."""
        self.micro_batch = micro_batch
        self.sharded = sharded
        """Whether the weights are sharded over the ranks."""
        self.compiled = compiled
        self.checkpointing = checkpointing
        """Whether layers compute their activations again in the backward pass."""
        self.end_of_text = end_of_text
        """The token that ends a document, if tokens attend within their own document only."""
        self.masked = masked
        """Whether batches may hold tokens that are not predicted."""
        self.fisher = fisher
        """The file of the Fisher information that the anchor of the recipe needs."""
        self.step = 0
        """Steps trained, over all attempts."""
        self.anchor: Anchor | None = None
        self.loss_sum = torch.zeros(())
        """The sum of the steps' mean losses (nats per token, or per pair) since a callback last reset it."""
        add_dropout(model, recipe["dropout"])
        self.loss_fn = compiled_loss_and_gradient() if compiled else loss_and_gradient
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if flex_attention:
            attend_by_flex_attention(model)
        if compiled:
            compile_layers(model)

    def configure_model(self) -> None:
        if self.sharded and self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            shard_model(self.model, self.device_mesh["data_parallel"])
        if "anchor" in self.recipe and self.anchor is None:
            # Checkpoints are restored later: the weights are still those that the stage starts from.
            self.anchor = Anchor(self.model, self.recipe["anchor"], self.fisher)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers_of(self.model, self.recipe)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return rate_of_recipe(self.recipe, step)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimiser step. batch: this rank's sequences, int64 [sequences, length]; of pairs, with their reference."""
        step = self.step
        # Dropout is a function of seed, step and rank, so that resumed runs draw the same masks.
        _seed_device(((self.recipe["seed"] * 1_000_003 + step) * 4_099 + self.global_rank) % 2**63, self.device)
        made = self.optimizers()
        optimizers = cast(list[LightningOptimizer], made if isinstance(made, list) else [made])
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = self.learning_rate_at(step)
        self._accumulate_gradients(batch, step)
        if self.anchor is not None:
            self.anchor.add_gradient(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe["clip"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def sequences_at_a_time(self, whole: int) -> int:
        """The sequences of a global batch of `whole` ones that a rank computes at a time; with pairs an even number."""
        share = -(-whole // self.unit // self.trainer.world_size)
        return self.unit * (min(max(1, self.micro_batch // self.unit), share) if self.micro_batch else share)

    def _accumulate_gradients(self, batch: Batch, step: int) -> None:
        """Accumulate the gradient of the mean loss over the global batch; the strategy averages it over ranks."""
        sequences, reference = (batch, None) if isinstance(batch, torch.Tensor) else batch
        whole = min(self.recipe["batch"], self.recipe["sequences"] - step * self.recipe["batch"])
        weight = self._weight(sequences, whole)
        largest = self.unit * -(-whole // self.unit // self.trainer.world_size)
        size = self.sequences_at_a_time(whole)
        for first in range(0, largest, size):
            part = sequences[first : first + size]
            last = first + size >= largest
            with contextlib.nullcontext() if last else self._no_sync(), self._compile_stance(len(part)):
                # A rank without sequences still takes part in the collectives, with weight 0.
                own = part if len(part) else sequences.new_zeros(self.unit, sequences.shape[1])
                if reference is None:
                    loss = summed_loss(self.model, own, self.loss_fn, self.end_of_text)
                else:
                    known = reference[first : first + size] if len(part) else reference.new_zeros(len(own))
                    beta = self.recipe["objective"]["dpo"]
                    loss = summed_preference_loss(self.model, own, known, beta, self.loss_fn, self.end_of_text)
                loss = loss * (weight if len(part) else 0.0)
                self.manual_backward(loss)
            self.loss_sum = self.loss_sum.to(loss.device) + loss.detach()

    def _weight(self, sequences: torch.Tensor, whole: int) -> torch.Tensor | float:
        """Return the number of ranks over what the loss is the mean of: the pairs or the predicted tokens of a global batch."""
        world = self.trainer.world_size
        if self.unit == PAIR:
            return world * PAIR / whole
        return self._predicted_share(sequences) if self.masked else world / (whole * (sequences.shape[1] - 1))

    def _predicted_share(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the number of ranks over the number of predicted tokens in the global batch, or over 1 if there are none."""
        count = predictions(batch)
        if self.trainer.world_size > 1:
            distributed.all_reduce(count)
        return self.trainer.world_size / count.clamp(min=1)

    def _compile_stance(self, sequences: int) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which only micro-batches of the usual size are compiled; smaller remainders run eagerly.

        So a step is computed in the same way in every attempt, whichever steps the attempt has run before.
        """
        if not self.compiled or sequences == self.sequences_at_a_time(self.recipe["batch"]):
            return contextlib.nullcontext()
        return uncompiled(self.model)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context without gradient synchronisation, for all but the last micro-batch of a step."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else contextlib.nullcontext()


def _seed_device(number: int, device: torch.device) -> None:
    """Seed one device.

    torch.manual_seed would take milliseconds a step: for each kind of device that is not in use it records a stack trace.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)
