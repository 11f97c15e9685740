"""The end of a training stage: the final weights, their held-out losses, and the files of the done run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from retain.datamodules.corpora.checkpoints.files import CHAT_TEMPLATE_FILES, COMPANIONS
from retain.datamodules.corpora.checkpoints.stored import checkpoint_folder, open_checkpoint
from retain.datamodules.corpora.tokenizer import TOKENIZER_CLASS, TOKENIZER_FILES, Tokenizer
from retain.datamodules.order.digest import add_digests, as_text
from retain.datamodules.order.stage_data import StageData
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.reporting.by_value import loss_fields
from retain.launchers.stage.training.carried import CarriedOptimizer, final_moments, write_moments
from retain.launchers.stage.training.curves import Curves, finite
from retain.launchers.stage.training.distributed import gather
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.lora import merge_adapters, plain_weights
from retain.lightning_modules.shards import whole_weights
from retain.lightning_modules.stage import StageModule
from retain.results.store.runs import LOSSES
from retain.results.store.state import CHAT_TEMPLATE
from retain.results.tensorboard.run_events import run_results
from retain.sweeps.base.files import share
from retain.sweeps.tree.heldout_splits import PREFERENCES


class FinalLosses(Callback):
    """Evaluates the final weights on every split, after early stopping has restored the best weights, with adapters merged."""

    def __init__(self, context: AttemptContext, curves: Curves, data: StageData) -> None:
        self.context, self.curves, self.heldout, self.data = context, curves, curves.heldout, data
        self.losses: dict[str, dict[str, Any]] = {}
        self.preferences: dict[str, dict[str, Any]] = {}
        """What the weights prefer on held-out pairs, by the fingerprint of the corpus."""
        self.weights: dict[str, torch.Tensor] = {}
        self.moments: dict[str, torch.Tensor] = {}
        """AdamW's moments, if the run keeps them."""
        self.data_digest = ""

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.moments = final_moments(self.context, trainer, self.heldout.module)
        self.curves.enter("evaluating")
        merge_adapters(self.heldout.module.model)
        for split in (*self.heldout.sequences, *self.heldout.others):
            found = self.heldout.loss(split, by_value=True)
            finite(found.loss, f"held-out loss on {split}", self.heldout.module.step)
            self.losses[split] = loss_fields(found, self.heldout.labels.get(split))
        for corpus, pairs in self.heldout.pairs.items():
            self.preferences[corpus] = pairs.fields(self.heldout.preferences(pairs))
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
    losses: dict[str, Any] = {"splits": _described(final.losses, context.spec), "steps": module.step}
    losses |= {"trained_tokens": curves.tokens(module.step), "token_digest": final.data_digest}
    if final.preferences:
        losses[PREFERENCES] = final.preferences
    if best:
        losses |= best.summary()
    curves.finish(*run_results(context.store, context.spec, final.losses))
    partial = context.run.folder / "model.partial"
    module.model.save_pretrained(partial, state_dict=final.weights)
    for weights in partial.glob("*.safetensors"):
        share(weights)
    if final.moments:
        write_moments(partial, final.moments, module.step + (carried.steps if carried else 0))
    tokenizer.save(partial)
    _keep_companions(context, partial)
    _settle_tokenizer(context.spec.get(CHAT_TEMPLATE), partial)
    context.finish(partial, {LOSSES: losses}, keep_checkpoints=context.spec["execution"]["keep_states"])


def _keep_companions(context: AttemptContext, folder: Path) -> None:
    """Copy what a tokeniser that came with a checkpoint has beside it, such as its chat template."""
    if context.spec["parent"] is not None:
        source = context.store.run(context.spec["parent"]).model
    elif start := context.spec["recipe"]["model"].get("start"):
        source = checkpoint_folder(context.store.root, start)
        if open_checkpoint(source).tokenizer != context.spec.get("tokenizer"):
            return
    else:
        return
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _settle_tokenizer(template: str | None, folder: Path) -> None:
    """Make transformers load the tokeniser that the corpora were packed with, and the study's chat template if it has one."""
    path = folder / TOKENIZER_FILES[1]
    settings = json.loads(path.read_bytes()) | {"tokenizer_class": TOKENIZER_CLASS}
    if template is not None:
        settings["chat_template"] = template
        for name in CHAT_TEMPLATE_FILES:  # they would take precedence
            (folder / name).unlink(missing_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _described(losses: Mapping[str, Mapping[str, Any]], spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The losses with the fingerprint of each split's corpus, and the half of its split if it is one."""
    corpora, halves = {**spec.get("others", {}), **spec["evaluation"]}, spec.get("halves", {})
    return {
        split: {**loss, "corpus": corpora[split]} | ({"half": halves[split]} if split in halves else {})
        for split, loss in losses.items()
    }
