"""One stage in one process group: read it from the store, train it, evaluate it, write it into the store."""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import contextlib
import json
import logging
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summary
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from retain.datamodules.corpora.tokenizer import Tokenizer, load_tokenizer
from retain.datamodules.order.digest import add_digests, as_text
from retain.datamodules.order.stage_data import StageData, heldout_sequences
from retain.launchers.stage.failures import BUG, DISK, classify
from retain.launchers.stage.heartbeat import heartbeat
from retain.launchers.stage.linear import train_linear
from retain.launchers.stage.parent import done_parent
from retain.launchers.stage.rank_failures import agree_on_cause, explained, forget_causes
from retain.launchers.stage.ranks import Group
from retain.launchers.stage.signals import CANCEL_SIGNAL, StopRequest
from retain.launchers.stage.training.checkpoints import (
    SavedState,
    StateWriter,
    clear_unfinished,
    newest_state,
    open_state,
    saved_states,
)
from retain.launchers.stage.training.choose_numerics import settle_form
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.launchers.stage.training.distributed import broadcast, gather, join_group
from retain.launchers.stage.training.micro_batch import fits_on_gpu, is_shared, kind_of_stage, micro_batch_for
from retain.launchers.stage.training.numerics import record_form
from retain.launchers.stage.training.resume import Cadence, Resume, StageStopped
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.lora import add_adapters, merge_adapters, plain_weights
from retain.lightning_modules.models import build_model, load_model, trained_parameters
from retain.lightning_modules.shards import whole_weights
from retain.lightning_modules.stage import StageModule
from retain.results.store.disk import check_room, stage_bytes, used_bytes
from retain.results.store.lease import Lease, take_lease
from retain.results.store.loss_table import four_losses
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import RetainError, StageFailedError
from retain.sweeps.schema.models import Architecture
from retain.sweeps.tree.linear_recipes import LINEAR_METHOD

LEASE_PATIENCE_S = 3.0


class RunBusyError(RetainError):
    """Another process trains this run."""


def run_stage(store: Store, key: str, group: Group, stop: StopRequest) -> None:
    """Train one run of the store whose parent is done, from its last state on; returns at once where it is done already.

    Raises StageFailedError, with the run left as failed; StageStopped, with the run left as planned and its state saved;
    RunBusyError where another process trains it. Lets no other error out.
    """
    run = store.run(key)
    if run.is_done():
        return
    lease = _take_patiently(run) if group.chief else None
    try:
        with heartbeat(lease):
            if run.spec()["recipe"].get("method") == LINEAR_METHOD:
                assert lease is not None
                train_linear(store, run, lease, stop)
            else:
                _train(store, run, group, stop, lease)
    except StageStopped as stopped:
        _end_stopped(run, group, str(stopped))
        raise
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        failure, reason = agree_on_cause(run.folder, group, *explained(error))
        if stop.signal is not None and failure == BUG:
            # The signal has reached the compilers beside this process too: that they left their work is no fault of the run.
            _end_stopped(run, group, stop.signal)
            raise StageStopped(stop.signal) from error
        try:
            if lease is not None and lease.held():
                run.end_attempt("failed", "error", reason, failure)
        except OSError as unwritten:
            failure = DISK if classify(unwritten) == DISK else failure
        raise StageFailedError(reason, failure) from error
    finally:
        if lease:
            lease.release()


def _end_stopped(run: Run, group: Group, cause: str) -> None:
    """Leave a run to be gone on with, unless it is cancelled: who cancels it marks it before its job is stopped."""
    if group.chief:
        marked = run.state()
        again = marked.state != "cancelled"
        run.end_attempt("planned" if again else "cancelled", cause, None if again else marked.reason)


def _take_patiently(run: Run) -> Lease:
    """The run's lease; launchers and `retain gc` hold one for moments only. Raises RunBusyError."""
    deadline = time.monotonic() + LEASE_PATIENCE_S
    while (lease := take_lease(run.lease)) is None:
        if time.monotonic() > deadline:
            raise RunBusyError(f"{run.key}: another process is training this run; see retain status")
        time.sleep(0.1)
    if run.is_done():  # whoever held the lease has just finished it
        lease.release()
        raise RunBusyError(f"{run.key}: another process has trained this run")
    return lease


def _train(store: Store, run: Run, group: Group, stop: StopRequest, lease: Lease | None) -> None:
    _quiet_libraries()
    spec, execution = run.spec(), run.execution()
    recipe = spec["recipe"]
    gpu = execution["accelerator"] == "gpu" or (execution["accelerator"] == "auto" and torch.cuda.is_available())
    bf16 = execution["precision"] == "bf16" or (execution["precision"] == "auto" and gpu)
    sharded = group.world > 1 and execution["strategy"] == "fsdp"
    if not gpu:
        torch.set_num_threads(execution["threads"])
    if group.chief:
        forget_causes(run.folder)
    join_group(group.world, gpu)
    # The attempt first: a process that dies while it tries the compilers is missed then.
    saved = _begin(run, recipe, group, torch.cuda.get_device_name() if gpu else None)
    form, notes = settle_form(run, execution, bf16, sharded, group, torch.device("cuda" if gpu else "cpu"), stop)
    if execution != spec["execution"]:
        notes.append(f"for lack of GPU memory {form.micro_batch} sequences at a time")
    if group.chief:
        _note(run, notes)
    tokenizer = load_tokenizer(store.root / "tokenizers" / spec["tokenizer"])
    model = _starting_model(store, spec, tokenizer)
    if group.chief:
        trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
        needed = stage_bytes(sum(parameter.numel() for parameter in model.parameters()), trained)
        check_room(run.folder, needed - used_bytes(run.checkpoint))
    module = StageModule(model, recipe, form.micro_batch, sharded, form.compiled)
    if gpu and form.micro_batch is None and not sharded:
        module.micro_batch = _found_micro_batch(store, model, recipe, group, bf16)
        form = replace(form, micro_batch=module.micro_batch)
    if group.chief:
        record_form(run, form)
    data = StageData(recipe, store.root, group.rank, group.world)
    data.next_step = saved.step if saved else 0
    splits = {role: heldout_sequences(store.root, corpus) for role, corpus in spec["evaluation"].items()}
    heldout = Heldout(splits, module, bf16, group.rank, group.world)
    curves = Curves(run, heldout, execution["heldout_every"], saved.shared["curves"] if saved else None)
    best = _early_stopping(recipe, curves)
    writer = StateWriter(run.checkpoint, group.rank, group.world, lambda: lease is None or lease.held())
    cadence = Cadence(execution["save_minutes"] * 60, execution["save_steps"])
    resume = Resume(saved, data, curves, best, writer, stop, cadence, holds_all=not sharded)
    final = FinalLosses(curves, data)
    trainer = stage_trainer(run.folder, group, gpu, bf16, sharded, [*([best] if best else []), curves, resume, final])
    fit(trainer, module, data)
    if group.chief:
        assert lease is not None
        _finish(store, run, spec, module, curves, best, final, tokenizer, lease)


def _begin(run: Run, recipe: Mapping[str, Any], group: Group, device: str | None) -> SavedState | None:
    """Choose the state to go on from, and enter the attempt with notes on it.

    device: what the GPUs call themselves. Raises StageStopped where the run has been cancelled meanwhile.
    """
    saved, cancelled = None, False
    if group.chief:
        notes: list[str] = []
        clear_unfinished(run.checkpoint)
        shutil.rmtree(run.folder / "model.partial", ignore_errors=True)
        had_states = bool(saved_states(run.checkpoint))
        saved = newest_state(run.checkpoint, notes.append)
        if had_states and saved is None:
            notes.append("no undamaged state is left: the stage starts anew")
        if saved is not None and saved.world != group.world:
            notes.append(
                f"goes on with {group.world} processes what {saved.world} began: the same order of data, other last bits"
            )
        tokens = saved.step * recipe["batch"] * recipe["sequence_length"] if saved else 0
        cancelled = run.state().state == "cancelled"
        if not cancelled:
            run.begin_attempt(os.getpid(), tokens, group.world, device)
            _note(run, notes)
    chosen = json.loads(broadcast(json.dumps([str(saved.folder) if saved else "", cancelled]), group.world))
    if chosen[1]:
        # The attempt would have been entered over the mark of who cancels the run.
        raise StageStopped(CANCEL_SIGNAL.name)
    if chosen[0] and saved is None:
        saved = open_state(Path(chosen[0]), check=False)
    return saved


def _note(run: Run, notes: Sequence[str]) -> None:
    """Tell what a reader of the results should know, in the log and in the current attempt."""
    for note in notes:
        print(note, flush=True)
    if notes:
        run.add_notes(notes)


def _finish(
    store: Store,
    run: Run,
    spec: Mapping[str, Any],
    module: StageModule,
    curves: Curves,
    best: KeepBest | None,
    final: "FinalLosses",
    tokenizer: Tokenizer,
    lease: Lease,
) -> None:
    losses: dict[str, Any] = {"splits": final.losses, "steps": module.step}
    losses |= {"trained_tokens": curves.tokens(module.step), "token_digest": final.token_digest}
    if best:
        losses |= best.summary()
    _write_summary(store, run, spec, final.losses, curves.writer)
    partial = run.folder / "model.partial"
    module.model.save_pretrained(partial, state_dict=final.weights)
    tokenizer.save(partial)
    if not lease.held():
        raise StageFailedError("another process has taken this run over; this one writes no more")
    run.finish(partial, losses, keep_states=spec["execution"]["keep_states"])


def _quiet_libraries() -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class FinalLosses(Callback):
    """The final weights, after early stopping has restored the best, adapters merged, and their losses on every split."""

    def __init__(self, curves: Curves, data: StageData) -> None:
        self.curves, self.heldout, self.data = curves, curves.heldout, data
        self.losses: dict[str, dict[str, float]] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.token_digest = ""

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.curves.enter("evaluating")
        merge_adapters(self.heldout.module.model)
        self.losses = {split: asdict(self.heldout.loss(split)) for split in self.heldout.sequences}
        self.curves.enter("writing")
        self.weights = plain_weights(whole_weights(self.heldout.module.model))
        self.token_digest = as_text(add_digests(gather(self.data.digest, self.heldout.world)))


def _starting_model(store: Store, spec: Mapping[str, Any], tokenizer: Tokenizer) -> LlamaForCausalLM:
    recipe = spec["recipe"]
    if spec["parent"] is None:
        return build_model(Architecture(**recipe["model"]), recipe["seed"], tokenizer.end_id)
    model = load_model(done_parent(store, spec).model)
    if recipe["method"] == "lora":
        add_adapters(model, recipe["lora"], recipe["seed"])
    return model


def _found_micro_batch(
    store: Store, model: LlamaForCausalLM, recipe: Mapping[str, Any], group: Group, bf16: bool
) -> int:
    """Sequences that this GPU, and every other rank's, takes at a time."""
    device = torch.device("cuda", torch.cuda.current_device())
    fits = fits_on_gpu(model.to(device), recipe["sequence_length"], bf16, device)  # type: ignore[arg-type]
    share = -(-recipe["batch"] // group.world)
    kind = kind_of_stage(model, recipe, bf16, group.world)
    own = micro_batch_for(store.root, kind, share, fits, keep=not is_shared(device))
    # Ranks ask for themselves, and take what fits on all.
    return min(gather(own, group.world))


def _early_stopping(recipe: Mapping[str, Any], curves: Curves) -> KeepBest | None:
    settings = recipe.get("early_stopping")
    if not settings:
        return None
    return KeepBest(
        lambda step: curves.heldout_loss("posttraining", step), settings["every"], settings["patience"], recipe["steps"]
    )


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
