"""The loops that benchmarks/training.py compares: ours, and peers as their documentation writes them, on the same batches.

Each calls `tick(model)` after every step, which may wait; so the measuring side decides whose turn it is. All start from the
same weights, at one constant rate, without weight decay, as the peers' rules of what decays differ.
"""

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaForCausalLM

from retain.datamodules.order.stage_data import StageData
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.checkpoints import CheckpointWriter
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.launchers.stage.training.resume import Cadence, Resume
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.models import build_model
from retain.lightning_modules.stage import StageModule
from retain.results.store.runs import Store
from retain.sweeps.schema.models import Architecture

Tick = Callable[[LlamaForCausalLM], None]


@dataclass(frozen=True)
class Work:
    """A run of a store, registered and not begun, whose batches all loops train on."""

    store: Path
    key: str
    seed: int = 0
    """Of the initial weights."""

    @property
    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = Store(self.store).run(self.key).spec()["recipe"]
        return found

    def model(self) -> LlamaForCausalLM:
        return build_model(Architecture(**self.recipe["model"]), self.seed)

    def batches(self) -> Iterator[torch.Tensor]:
        batches = StageData(self.recipe, self.store).batches
        return (torch.from_numpy(batches.tokens(step)) for step in range(len(batches)))


Loop = Callable[[Work, Tick], LlamaForCausalLM]
"""Trains to the end, unless a tick raises, and returns the model."""


def plain(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """A plain PyTorch loop."""
    model, recipe = work.model(), work.recipe
    called: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["lr"], betas=tuple(recipe["betas"]), weight_decay=recipe["weight_decay"]
    )
    for batch in work.batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = called(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        optimizer.step()
        optimizer.zero_grad()
        tick(model)
    return model


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """All sequences of a run in its order."""

    def __init__(self, work: Work) -> None:
        self.sequences = torch.cat(list(work.batches()))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.sequences[index], "labels": self.sequences[index]}


def transformers_trainer(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """transformers.Trainer with its defaults, but for what the recipe says."""
    import transformers

    class Ticks(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **more: Any) -> None:
            tick(more["model"])

    recipe = work.recipe
    arguments = transformers.TrainingArguments(
        output_dir=str(work.store / f"trainer-{os.getpid()}"),
        per_device_train_batch_size=recipe["batch"],
        num_train_epochs=1,
        learning_rate=recipe["lr"],
        lr_scheduler_type="constant",
        adam_beta1=recipe["betas"][0],
        adam_beta2=recipe["betas"][1],
        weight_decay=recipe["weight_decay"],
        max_grad_norm=recipe["clip"],
        train_sampling_strategy="sequential",
        bf16=bf16,
        torch_compile=compiled,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = work.model()
    trainer = transformers.Trainer(model, arguments, train_dataset=Sequences(work), callbacks=[Ticks()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return model


class Documented(LightningModule):
    """A LightningModule as Lightning's documentation writes one."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model, self.recipe = work.model(), work.recipe

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        betas = tuple(recipe["betas"])
        return torch.optim.AdamW(self.parameters(), lr=recipe["lr"], betas=betas, weight_decay=recipe["weight_decay"])


class Ticks(Callback):
    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.tick(module.model)


def lightning_loop(work: Work, tick: Tick) -> LlamaForCausalLM:
    """Lightning's Trainer with its defaults, without its progress bar, log and checkpoints."""
    _quiet()
    module = Documented(work)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        gradient_clip_val=work.recipe["clip"],
        callbacks=[Ticks(tick)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader: Any = DataLoader([row["input_ids"] for row in Sequences(work)], batch_size=work.recipe["batch"])  # type: ignore[attr-defined,arg-type]
    trainer.fit(module, loader)
    return module.model


def ours(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """A stage as `run_stage` trains it, with its data, curves and (never due) states."""
    _quiet()
    recipe, run = work.recipe, Store(work.store).run(work.key)
    module = StageModule(work.model(), recipe, compiled=compiled)
    data = StageData(recipe, work.store)
    curves = Curves(run, Heldout({}, module, bf16, 0, 1), None, None)
    writer = CheckpointWriter(run.checkpoint, 0, 1, lambda: True)
    resume = Resume(None, data, curves, None, writer, StopRequest(), Cadence(math.inf, None), holds_all=True)
    fit(stage_trainer(run.folder, Ranks(), False, bf16, False, [curves, resume, Ticks(tick)]), module, data)
    return module.model


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


LOOPS: dict[str, Loop] = {
    "plain PyTorch loop, fp32": plain,
    "transformers Trainer, fp32": transformers_trainer,
    "Lightning loop, fp32": lightning_loop,
    "Retain, fp32": ours,
    "Retain, fp32, compiled": functools.partial(ours, compiled=True),
    "Retain, bf16, compiled": functools.partial(ours, bf16=True, compiled=True),
    "transformers Trainer, fp32, compiled": functools.partial(transformers_trainer, compiled=True),
    "transformers Trainer, bf16, compiled": functools.partial(transformers_trainer, bf16=True, compiled=True),
    "plain PyTorch loop, bf16, compiled": functools.partial(plain, bf16=True, compiled=True),
}
PEER = "transformers Trainer, fp32"
