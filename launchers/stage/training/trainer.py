"""Lightning's Trainer, as every stage uses it."""

import contextlib
import ctypes
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.training.distributed import strategy_of
from retain.lightning_modules.stage import StageModule

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


class _NoHandlers(_SignalConnector):
    """Leaves all signals to `StopRequest`.

    Lightning's handler of TERM waits for all ranks in a collective operation, so it hangs if only one rank received the signal.
    """

    def register_signal_handlers(self) -> None:
        """Register nothing."""


class _EpochLoop(_TrainingEpochLoop):
    """Skips the broadcast before each step that asks whether rank 0 received TERM: reading its result waits for the device."""

    def _broadcast_sigterm_tensor(self) -> None:
        """Broadcast nothing: ranks agree on stop signals in `Agreement`."""


@contextlib.contextmanager
def _without_hints() -> Iterator[None]:
    """Silence Lightning's hints on what is as it should be: batches read ahead in a thread, and processes started by Retain."""
    with warnings.catch_warnings():
        for hint in ("does not have many workers", "LeafSpec.*is deprecated", "`srun` command is available"):
            warnings.filterwarnings("ignore", message=f".*{hint}.*")
        yield


@_without_hints()
def stage_trainer(
    folder: Path,
    ranks: Ranks,
    gpu: bool,
    bf16: bool,
    sharded: bool,
    callbacks: Sequence[Callback],
    deterministic: bool = True,
) -> Trainer:
    """A Trainer for one epoch, one step a batch; callbacks handle signals, checkpoints, logs and progress."""
    if not gpu:
        keep_freed_memory()
    trainer = Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=ranks.world // ranks.nodes,
        num_nodes=ranks.nodes,
        strategy=strategy_of(ranks.world, sharded),
        plugins=[TorchElasticEnvironment() if ranks.world > 1 else LightningEnvironment()],
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=1,
        callbacks=list(callbacks),
        # Nothing is written there. Without it Lightning asks for the working directory, which may have been deleted.
        default_root_dir=folder,
        deterministic=deterministic,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer._signal_connector = _NoHandlers(trainer)
    trainer.fit_loop.epoch_loop = _EpochLoop(trainer)
    # torch's deterministic mode would write NaN into every new tensor first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return trainer


@_without_hints()
def fit(trainer: Trainer, module: StageModule, data: LightningDataModule) -> None:
    """Train."""
    trainer.fit(module, datamodule=data)


def keep_freed_memory() -> None:
    """Let the tensors of a step reuse the memory of the previous step, up to 32 MiB each: new pages are slower.

    Only glibc needs this.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
