"""Lightning's Trainer as every stage is trained by it."""

import contextlib
import ctypes
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer

from retain.launchers.stage.ranks import Group
from retain.launchers.stage.training.distributed import strategy_of
from retain.lightning_modules.stage import StageModule

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""


def stage_trainer(
    folder: Path, group: Group, gpu: bool, bf16: bool, sharded: bool, callbacks: Sequence[Callback]
) -> Trainer:
    """One epoch, deterministic, one step a batch; signals, states, logs and progress are the callbacks' own."""
    if not gpu:
        _keep_freed_memory()
    trainer = Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=group.world // group.nodes,
        num_nodes=group.nodes,
        strategy=strategy_of(group.world, sharded),
        plugins=[TorchElasticEnvironment() if group.world > 1 else LightningEnvironment()],
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=1,
        callbacks=list(callbacks),
        # Nothing is written there; without it Lightning asks for the working directory, which may be gone.
        default_root_dir=folder,
        deterministic=True,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Part of torch's deterministic mode: it would write NaN into every new tensor before that is filled.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return trainer


def fit(trainer: Trainer, module: StageModule, data: LightningDataModule) -> None:
    """Train, without Lightning's advice on loaders."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        trainer.fit(module, datamodule=data)


def _keep_freed_memory() -> None:
    """Let the tensors of a step take the memory of the last one's, up to 32 MiB each: new pages from the system are slower.

    Only glibc has to be told.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
