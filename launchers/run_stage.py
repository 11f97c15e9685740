"""One stage in one process group: read it from the store, train it, evaluate it, write it into the store."""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import contextlib
import json
import logging
import shutil
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from datamodules.stage_data import StageData, heldout_sequences
from datamodules.tokenizer import Tokenizer, load_tokenizer
from launchers.callbacks import Curves, Heldout
from lightning_modules.early_stopping import KeepBest
from lightning_modules.models import build_model, load_model
from lightning_modules.stage import StageModule
from results.lease import Lease, take_lease
from results.losses import four_losses
from results.store import Run, Store
from sweeps.errors import RetainError, StageFailedError
from sweeps.models import Architecture

BEAT_EVERY_S = 15.0


@dataclass(frozen=True)
class Group:
    """This process's place among those that train one stage together; the launcher sets the rendezvous."""

    rank: int = 0
    world: int = 1

    @property
    def chief(self) -> bool:
        return self.rank == 0


def run_stage(store: Store, key: str, group: Group) -> None:
    """Train one run of the store whose parent is done; returns at once where it is done already.

    Raises StageFailedError, with the run left as failed, and lets no other error out.
    """
    run = store.run(key)
    if run.is_done():
        return
    lease = take_lease(run.lease) if group.chief else None
    if group.chief and lease is None:
        raise StageFailedError(f"{key}: another process is training this run; see retain status")
    try:
        with _heartbeat(lease):
            if group.chief:
                run.begin_attempt(os.getpid())
            _train(store, run, group)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        reason = reason if isinstance(error, RetainError) else f"{type(error).__name__}: {reason}"
        if group.chief:
            run.end_attempt("failed", "error", reason)
        raise StageFailedError(reason) from error
    finally:
        if lease:
            lease.release()


def _train(store: Store, run: Run, group: Group) -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    spec = run.spec()
    recipe, execution = spec["recipe"], spec["execution"]
    gpu = execution["accelerator"] == "gpu" or (execution["accelerator"] == "auto" and torch.cuda.is_available())
    bf16 = execution["precision"] == "bf16" or (execution["precision"] == "auto" and gpu)
    if not gpu:
        torch.set_num_threads(execution["threads"])
    tokenizer = load_tokenizer(store.root / "tokenizers" / spec["tokenizer"])
    module = StageModule(_starting_model(store, spec, tokenizer), recipe, execution["micro_batch"])
    data = StageData(recipe, store.root, group.rank, group.world)
    splits = {role: heldout_sequences(store.root, corpus) for role, corpus in spec["evaluation"].items()}
    heldout = Heldout(splits, module, bf16, group.rank, group.world)
    if group.chief:
        _clear_attempt(run)
    curves = Curves(run, heldout, execution["heldout_every"])
    best = _early_stopping(recipe, curves)
    final = FinalLosses(heldout)
    trainer = Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=group.world if group.world > 1 else 1,
        strategy=_strategy(group, gpu),
        plugins=[TorchElasticEnvironment() if group.world > 1 else LightningEnvironment()],
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=1,
        max_steps=recipe["steps"],
        callbacks=[*([best] if best else []), curves, final],
        deterministic=True,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        trainer.fit(module, datamodule=data)
    if not trainer.state.finished:
        raise StageFailedError("the trainer was interrupted")
    if group.chief:
        losses: dict[str, Any] = {"splits": final.losses, "steps": trainer.global_step}
        losses["trained_tokens"] = curves.tokens(trainer.global_step)
        if best:
            losses |= best.summary()
        _write_summary(store, run, spec, final.losses, curves.writer)
        _write_model(run, module.model, tokenizer, losses)


class FinalLosses(Callback):
    """The losses of the final weights on every split; after early stopping has restored the best."""

    def __init__(self, heldout: Heldout) -> None:
        self.heldout = heldout
        self.losses: dict[str, dict[str, float]] = {}

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.losses = {split: asdict(self.heldout.loss(split)) for split in self.heldout.sequences}


def _starting_model(store: Store, spec: Mapping[str, Any], tokenizer: Tokenizer) -> LlamaForCausalLM:
    if spec["parent"] is None:
        recipe = spec["recipe"]
        return build_model(Architecture(**recipe["model"]), recipe["seed"], tokenizer.end_id)
    parent = store.run(spec["parent"])
    if not parent.is_done():
        raise StageFailedError(f"its parent {parent.key} is not done; run the study again")
    return load_model(parent.model)


def _strategy(group: Group, gpu: bool) -> Strategy | str:
    if group.world == 1:
        return "auto"
    return DDPStrategy(process_group_backend="nccl" if gpu else "gloo")


def _early_stopping(recipe: Mapping[str, Any], curves: Curves) -> KeepBest | None:
    settings = recipe.get("early_stopping")
    if not settings:
        return None
    return KeepBest(
        lambda step: curves.heldout_loss("posttraining", step), settings["every"], settings["patience"], recipe["steps"]
    )


def _clear_attempt(run: Run) -> None:
    """Remove what an unfinished attempt left: it starts anew."""
    for path in run.folder.glob("events.*"):
        path.unlink()
    shutil.rmtree(run.folder / "model.partial", ignore_errors=True)


def _write_model(run: Run, model: LlamaForCausalLM, tokenizer: Tokenizer, losses: Mapping[str, Any]) -> None:
    partial = run.folder / "model.partial"
    model.save_pretrained(partial)
    tokenizer.save(partial)
    run.finish(partial, losses)


def _write_summary(
    store: Store, run: Run, spec: Mapping[str, Any], losses: Mapping[str, Any], writer: SummaryWriter | None
) -> None:
    """TensorBoard's hyperparameters: the settings along the path, and for a leaf its four losses as metrics."""
    assert writer is not None
    settings: dict[str, Any] = {}
    path = [spec]
    while parent := path[0]["parent"]:
        path.insert(0, store.run(parent).spec())
    for stage in path:
        recipe = stage["recipe"]
        fields = ("lr", "min_lr", "batch", "dropout", "weight_decay", "seed", "steps")
        settings |= {f"{stage['stage']}.{name}": recipe[name] for name in fields}
    settings |= {
        name: value if isinstance(value, int | float) else json.dumps(value) for name, value in spec["axes"].items()
    }
    before = [store.run(stage["key"]).losses()["splits"] for stage in path[:-1]]
    metrics = {name: loss for name, loss in four_losses([*before, losses]).items() if loss is not None}
    for name, loss in metrics.items():
        writer.add_scalar(f"losses/{name}", loss, 0)
    for part in hparams_summary(  # type: ignore[no-untyped-call]
        settings, {f"losses/{name}": loss for name, loss in metrics.items()}
    ):
        writer._get_file_writer().add_summary(part)  # type: ignore[no-untyped-call]
    writer.close()


@contextlib.contextmanager
def _heartbeat(lease: Lease | None) -> Iterator[None]:
    """Keep a lease alive from a thread; end the process once somebody else has taken it over."""
    if lease is None:
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_EVERY_S):
            if not lease.held():
                print("another process has taken this run over; this one stops", flush=True)
                os._exit(3)
            lease.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
