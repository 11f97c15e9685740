"""The end of a training stage: the final weights, their held-out losses, and the files of the done run."""

import json
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.datamodules.order.digest import add_digests, as_text
from retain.datamodules.order.stage_data import StageData
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.training.carried import CarriedOptimizer, final_moments, write_moments
from retain.launchers.stage.training.curves import Curves
from retain.launchers.stage.training.distributed import gather
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.lora import merge_adapters, plain_weights
from retain.lightning_modules.shards import whole_weights
from retain.lightning_modules.stage import StageModule
from retain.results.store.loss_table import four_losses
from retain.results.store.runs import LOSSES
from retain.sweeps.base.files import share
from retain.sweeps.tree.key_diff import stage_name

SETTINGS = ("lr", "min_lr", "batch", "dropout", "weight_decay", "seed", "steps")
"""Recipe fields that TensorBoard shows as hyperparameters."""


class FinalLosses(Callback):
    """Evaluates the final weights on every split, after early stopping has restored the best weights, with adapters merged."""

    def __init__(self, context: AttemptContext, curves: Curves, data: StageData) -> None:
        self.context, self.curves, self.heldout, self.data = context, curves, curves.heldout, data
        self.losses: dict[str, dict[str, float]] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.moments: dict[str, torch.Tensor] = {}
        """AdamW's moments, if the run keeps them."""
        self.data_digest = ""

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.moments = final_moments(self.context, trainer, self.heldout.module)
        self.curves.enter("evaluating")
        merge_adapters(self.heldout.module.model)
        self.losses = {split: asdict(self.heldout.loss(split)) for split in self.heldout.sequences}
        self.curves.enter("writing")
        self.weights = plain_weights(whole_weights(self.heldout.module.model))
        self.data_digest = as_text(add_digests(gather(self.data.digest, self.heldout.world)))


def publish(
    context: AttemptContext,
    module: StageModule,
    curves: Curves,
    best: KeepBest | None,
    final: FinalLosses,
    tokenizer: Tokenizer,
    carried: CarriedOptimizer | None,
) -> None:
    """Write curves, model and losses into the run, and make it done. For rank 0."""
    losses: dict[str, Any] = {"splits": final.losses, "steps": module.step}
    losses |= {"trained_tokens": curves.tokens(module.step), "token_digest": final.data_digest}
    if best:
        losses |= best.summary()
    hyperparameters, metrics = _summary(context, final.losses)
    curves.finish(hyperparameters, metrics)
    partial = context.run.folder / "model.partial"
    module.model.save_pretrained(partial, state_dict=final.weights)
    for weights in partial.glob("*.safetensors"):
        share(weights)
    if final.moments:
        write_moments(partial, final.moments, module.step + (carried.steps if carried else 0))
    tokenizer.save(partial)
    context.finish(partial, {LOSSES: losses}, keep_checkpoints=context.spec["execution"]["keep_states"])


def _summary(context: AttemptContext, losses: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The run's hyperparameters for TensorBoard (the settings along its path) and its losses by their name in a trial."""
    settings: dict[str, Any] = {}
    path = [context.spec]
    while parent := path[0]["parent"]:
        path.insert(0, context.store.run(parent).spec())
    for stage in path:
        settings |= {f"{stage_name(stage)}.{name}": stage["recipe"][name] for name in SETTINGS}
    settings |= {
        name: value if isinstance(value, int | float) else json.dumps(value)
        for name, value in context.spec["axes"].items()
    }
    before = [context.store.run(stage["key"]).losses()["splits"] for stage in path[:-1]]
    found = four_losses([*before, losses], [stage_name(stage) for stage in path])
    return settings, {name: loss for name, loss in found.items() if loss is not None}
