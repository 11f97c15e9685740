"""The kind `training`: one stage of a study, trained by Lightning on any number of ranks.

In order: agree on the checkpoint to resume from, on how steps are computed and on what fits the GPU; train; restore the best
weights; evaluate; write the result.
"""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from retain.datamodules.corpora.checkpoints.stored import checkpoint_folder
from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.datamodules.order.stage_data import StageData, heldout_sequences
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.environment import compile_cache
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.rank_failures import clear_rank_causes
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.reporting.by_value import SplitLabels, split_labels
from retain.launchers.stage.reporting.energy import EnergyMeter, cpu_meter, gpu_meter
from retain.launchers.stage.signals import CANCEL_SIGNAL, AttemptStopped
from retain.launchers.stage.training.carried import carried_optimizer
from retain.launchers.stage.training.checkpoints import (
    CheckpointWriter,
    SavedCheckpoint,
    checkpoint_folders,
    newest_checkpoint,
    open_checkpoint,
    remove_unfinished,
)
from retain.launchers.stage.training.choose_numerics import choose_numerics, machine_of
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.launchers.stage.training.distributed import broadcast, gather, join_ranks
from retain.launchers.stage.training.finish import FinalLosses, publish
from retain.launchers.stage.training.micro_batch import fits_on_gpu, is_shared, micro_batch_for, stage_shape
from retain.launchers.stage.training.numerics import record_numerics, steps_words
from retain.launchers.stage.training.preferences import (
    HeldoutPairs,
    pairs_to_measure,
    pairs_to_stop_on,
    training_reference,
)
from retain.launchers.stage.training.resume import Cadence, Resume, StopEvaluation
from retain.launchers.stage.training.trainer import fit, keep_freed_memory, stage_trainer
from retain.lightning_modules.compiled import attend_in_fp32
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.lora import add_adapters
from retain.lightning_modules.models import build_from_config, build_model, load_model, on_device, trained_parameters
from retain.lightning_modules.objective import predictions
from retain.lightning_modules.stage import StageModule
from retain.results.store.disk import MOMENT_BYTES, check_room, stage_bytes, used_bytes
from retain.results.store.runs import Run
from retain.results.store.state import FISHER_FILE, KEEPS_OPTIMIZER
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.schema.models import Architecture
from retain.sweeps.schema.section import FISHER
from retain.sweeps.tree.heldout_splits import preference_split, role_of, tune_split
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.recipes.anchor import estimate_key


def attempt(context: AttemptContext) -> None:
    """Make one attempt at a training stage, on every rank."""
    os.environ.update(compile_cache(context.store.root))
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run, spec, ranks, execution = context.run, context.spec, context.ranks, context.run.execution()
    recipe, first = spec["recipe"], ranks.is_first

    # 1. Connect the ranks, and record that the attempt begins: if the process dies from here on, others notice it.
    machine = machine_of(execution, ranks.world)
    if not machine.gpu:
        torch.set_num_threads(execution["threads"])
        keep_freed_memory()
    if first:
        clear_rank_causes(run.folder)
    join_ranks(ranks.world, machine.gpu)
    energy = _energy(ranks, machine.gpu) if first else None
    saved = _begin(context, torch.cuda.get_device_name() if machine.gpu else None)

    # 2. Load the parent's weights or build a new model, and choose how steps are computed: as in earlier attempts, so that the
    # run ends in the same bits.
    tokenizer = stored_tokenizer(context.store.root, spec.get("tokenizer", "none"))
    model = _starting_model(context, tokenizer)
    end_of_text = tokenizer.end_id if "documents" in recipe else None
    numerics, notes = choose_numerics(context, execution, machine, model, end_of_text)
    if execution != spec["execution"]:
        notes.append(f"micro-batch reduced to {numerics.micro_batch} sequences, because GPU memory was exceeded")
    if first:
        _note(run, notes, steps_words(numerics))

    # 3. Check that the results will fit on the disk, and find what fits on the GPU.
    if first:
        _check_room(run, model, KEEPS_OPTIMIZER in spec)
    if numerics.bf16 and not machine.gpu:
        attend_in_fp32(model)
    module = StageModule(
        model,
        recipe,
        numerics.micro_batch,
        machine.sharded,
        numerics.compiled,
        end_of_text,
        flex_attention=bool(numerics.flex_attention),
        checkpointing=execution.get("checkpointing", False),
        fisher=_fisher_file(context),
    )
    if machine.gpu and numerics.micro_batch is None and not machine.sharded:
        module.micro_batch = _fitting_micro_batch(context, module, machine.bf16)
        numerics = replace(numerics, micro_batch=module.micro_batch)
    if first:
        record_numerics(run, numerics)

    # 4. Train.
    data = StageData(recipe, context.store.root, ranks.rank, ranks.world, training_reference(context))
    data.next_step = saved.step if saved else 0
    module.masked = data.batches.masked
    objective = _objective(context)
    heldout = Heldout(
        *_heldout_splits(context),
        module,
        machine.bf16,
        ranks.rank,
        ranks.world,
        labels=_labels(context),
        pairs=pairs_to_measure(context),
        objective=objective,
        between=StopEvaluation(context.stop, ranks.world),
    )
    points = saved.shared["curves"] if saved else None
    curves = Curves(context, heldout, execution["heldout_every"], points, execution.get("log_every"), energy)
    best = _early_stopping(spec, curves, next(iter(objective), None))
    writer = CheckpointWriter(run.checkpoint, ranks.rank, ranks.world, context.may_write)
    cadence = Cadence(execution["save_minutes"] * 60, execution["save_steps"])
    carried = carried_optimizer(context)
    resume = Resume(saved, carried, data, curves, best, writer, context.stop, cadence, holds_all=not machine.sharded)
    final = FinalLosses(context, curves, data)
    callbacks = [*([best] if best else []), curves, resume, final]
    bf16, deterministic = bool(numerics.bf16), numerics.deterministic is not False
    trainer = stage_trainer(run.folder, ranks, machine.gpu, bf16, machine.sharded, callbacks, deterministic)
    fit(trainer, module, data)

    # 5. Write the result.
    if first:
        publish(context, module, curves, best, final, tokenizer, carried)


def _begin(context: AttemptContext, device: str | None) -> SavedCheckpoint | None:
    """Record that the attempt begins; returns the checkpoint to resume from, the same on every rank.

    device: the name of the GPUs. Raises AttemptStopped if the run was cancelled.
    """
    run, ranks, recipe = context.run, context.ranks, context.spec["recipe"]
    saved, cancelled = None, False
    # 1. Rank 0 chooses the newest undamaged checkpoint, and begins the attempt.
    if ranks.is_first:
        notes: list[str] = []
        remove_unfinished(run.checkpoint)
        shutil.rmtree(run.folder / "model.partial", ignore_errors=True)
        had_checkpoints = bool(checkpoint_folders(run.checkpoint))
        saved = newest_checkpoint(run.checkpoint, notes.append)
        if had_checkpoints and saved is None:
            notes.append("no undamaged checkpoint is left: the stage starts again")
        if saved is not None and saved.world != ranks.world:
            notes.append(
                f"resumes with {ranks.world} ranks; the run had {saved.world}: same order of data, not bit-identical"
            )
        try:
            context.begin(saved.step * recipe["batch"] * recipe["sequence_length"] if saved else 0, device)
            _note(run, notes)
        except AttemptStopped:
            cancelled = True
    # 2. The other ranks open the same checkpoint, which rank 0 has checked.
    folder, cancelled = broadcast((saved.folder if saved else None, cancelled), ranks.world)
    if cancelled:
        raise AttemptStopped(CANCEL_SIGNAL.name)
    if folder and saved is None:
        saved = open_checkpoint(folder, check=False)
    return saved


def _energy(ranks: Ranks, gpu: bool) -> EnergyMeter | None:
    """What counts the energy of all ranks; None if it is unknown, as on several nodes or CPU processes."""
    if ranks.nodes > 1 or (gpu and torch.cuda.device_count() < ranks.world):
        return None
    if not gpu:
        return cpu_meter() if ranks.world == 1 else None
    devices = map(torch.cuda.get_device_properties, range(ranks.world))
    return gpu_meter([str(device.uuid) for device in devices])


def _note(run: Run, notes: Sequence[str], steps: str | None = None) -> None:
    """Add notes for readers of the results to the log and to the current attempt, and how steps are computed."""
    for note in notes:
        print(note, flush=True)
    if notes or steps:
        run.note(notes, steps)


def _starting_model(context: AttemptContext, tokenizer: Tokenizer) -> PreTrainedModel:
    """The parent's model, the checkpoint that the recipe starts from, or a new one; with adapters if the recipe has them."""
    recipe = context.spec["recipe"]
    if context.spec["parent"] is not None:
        model = load_model(usable_parent(context.store, context.spec["parent"]).model)
    elif start := recipe["model"].get("start"):
        model = load_model(checkpoint_folder(context.store.root, start))
    elif family := recipe["model"].get("family"):
        model = build_from_config(family, recipe["model"]["config"], recipe["seed"])
    else:
        model = build_model(Architecture(**recipe["model"]), recipe["seed"], tokenizer.end_id)
    if recipe.get("method") == "lora":
        add_adapters(model, recipe["lora"], recipe["seed"])
    return model


def _fisher_file(context: AttemptContext) -> Path | None:
    """The file of the Fisher information that the anchor of the recipe needs; None if it needs none.

    Raises StageFailedError, DamageError.
    """
    estimate = context.spec["recipe"].get("anchor", {}).get(FISHER)
    if estimate is None:
        return None
    key = estimate_key(context.spec["parent"], estimate)
    return usable_parent(context.store, key, "the Fisher information").model / FISHER_FILE


def _check_room(run: Run, model: PreTrainedModel, keeps_optimizer: bool) -> None:
    """Check that checkpoints, weights and the moments that are kept fit on the disk. Raises NoRoomError."""
    trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
    needed = stage_bytes(sum(parameter.numel() for parameter in model.parameters()), trained)
    needed += MOMENT_BYTES * trained if keeps_optimizer else 0
    check_room(run.folder, needed - used_bytes(run.checkpoint))


def _fitting_micro_batch(context: AttemptContext, module: StageModule, bf16: bool) -> int:
    """The number of sequences that fit on the GPU of every rank."""
    recipe, world, model = context.spec["recipe"], context.ranks.world, module.model
    device = torch.device("cuda", torch.cuda.current_device())
    fits = fits_on_gpu(on_device(model, device), recipe, bf16, device, module.end_of_text, world)
    share = -(-recipe["batch"] // world)
    shape = stage_shape(model, recipe, bf16, world, module.checkpointing)
    own = micro_batch_for(context.store.root, shape, share, fits, keep=not is_shared(device))
    return min(gather(own, world))


def _heldout_splits(context: AttemptContext) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The held-out splits by role, and those of the study's other corpora by name. Raises StageFailedError."""
    spec, root = context.spec, context.store.root
    halves = spec.get("halves", {})
    splits = {role: heldout_sequences(root, corpus, halves.get(role)) for role, corpus in spec["evaluation"].items()}
    for role in halves:
        if not int(predictions(splits[role])):
            raise StageFailedError(
                f"{role}: no token of this half of the held-out split is predicted; raise heldout of its corpus, or write "
                "early_stopping.split: heldout"
            )
    return splits, {name: heldout_sequences(root, corpus) for name, corpus in spec.get("others", {}).items()}


def _labels(context: AttemptContext) -> dict[str, SplitLabels]:
    """The values of the splits of `_heldout_splits`, of corpora with `by`."""
    spec, root = context.spec, context.store.root
    halves, known = spec.get("halves", {}), spec.get("values", {})
    found = {
        split: split_labels(root, corpus, known.get(corpus), halves.get(split))
        for split, corpus in {**spec.get("others", {}), **spec["evaluation"]}.items()
    }
    return {split: labels for split, labels in found.items() if labels is not None}


def _selection_split(spec: Mapping[str, Any]) -> str:
    """The name of the held-out split, or of the half, that early stopping selects on."""
    role, settings = role_of(stage_name(spec)), spec["recipe"].get("early_stopping") or {}
    return tune_split(role) if settings.get("split") == "tune" else role


def _objective(context: AttemptContext) -> dict[str, HeldoutPairs]:
    """The held-out pairs of a stage that learns from pairs, by the name of its DPO loss on them; empty for any other."""
    pairs = pairs_to_stop_on(context)
    return {} if pairs is None else {preference_split(_selection_split(context.spec)): pairs}


def _early_stopping(spec: Mapping[str, Any], curves: Curves, objective: str | None) -> KeepBest | None:
    """Early stopping on the held-out split of the stage's corpus; None without it.

    objective: the name of the held-out loss to stop on, if it is another than the next-token loss.
    """
    recipe = spec["recipe"]
    settings = recipe.get("early_stopping")
    if not settings:
        return None
    split = objective or _selection_split(spec)
    warmup = recipe["warmup"] if settings.get("after_warmup") else 0
    every, patience = settings["every"], settings["patience"]
    return KeepBest(
        lambda step: curves.heldout_loss(split, step),
        every,
        patience,
        recipe["steps"],
        warmup,
        counted=lambda step: curves.has_loss(split, step),
    )
