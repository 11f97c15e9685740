"""A small Llama, a recipe to train it, and what counts how often a step waits for its device."""

from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from retain.lightning_modules.models import build_model
from retain.lightning_modules.stage import StageModule
from retain.sweeps.schema.models import Architecture

# For a model of this size a second thread costs more time than it saves.
torch.set_num_threads(1)

SMALL = Architecture(layers=2, hidden=32, heads=4, kv_heads=2, mlp=48, vocabulary=96, tied=True, context=64)
LENGTH = 16

RECIPE: dict[str, Any] = {
    "seed": 0,
    "batch": 8,
    "sequences": 27,
    "steps": 4,
    "lr": 1e-2,
    "min_lr": 1e-3,
    "warmup": 1,
    "weight_decay": 0.1,
    "betas": [0.9, 0.95],
    "clip": 1.0,
    "dropout": 0.0,
}
"""Four steps; the last one has three sequences."""


def small_model(seed: int = 0, **fields: Any) -> LlamaForCausalLM:
    return build_model(replace(SMALL, **fields), seed)


def random_sequences(count: int, seed: int = 0, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, SMALL.vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def steps_of(recipe: dict[str, Any], seed: int = 0) -> list[torch.Tensor]:
    """Return random batches for a recipe; the last one may be smaller."""
    return list(random_sequences(recipe["sequences"], seed).split(recipe["batch"]))


def train(module: StageModule, batches: list[torch.Tensor], *callbacks: Any, accelerator: str = "cpu") -> Trainer:
    """Train a module on these batches, one step each."""
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer


class Waits(TorchDispatchMode):
    """Counts the operations that read a value of a tensor, for which a GPU would have to finish all that was asked of it."""

    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in self.READS:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))
