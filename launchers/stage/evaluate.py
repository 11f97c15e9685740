"""The kind `evaluate`: the loss of a done stage's weights on the held-out split of a corpus, as training runs measure it.

An attempt saves its sums on the way, and the next one continues them to the same bits.
"""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import math
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from retain.datamodules.corpora.checkpoints.stored import checkpoint_folder
from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.log import log_line
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.reporting.by_value import loss_fields, split_labels
from retain.launchers.stage.saving.pause import Pause
from retain.launchers.stage.saving.tensors import save_tensors, saved_tensors
from retain.launchers.stage.training.choose_numerics import arithmetic_of, begin_on_one_process
from retain.launchers.stage.training.preferences import held_out
from retain.lightning_modules.compiled import deterministic_kernels
from retain.lightning_modules.models import average_with, load_model
from retain.lightning_modules.objective import heldout_loss, no_sums
from retain.lightning_modules.preferences import dpo
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.runs import LOSSES, Run
from retain.results.store.state import Progress
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.schema.section import REFERENCE
from retain.sweeps.tree.heldout_splits import PREFERENCES
from retain.sweeps.tree.recipes.preference import PAIR

SUMS = "sums.safetensors"
"""The file of saved sums in checkpoint/."""


def attempt(context: AttemptContext) -> None:
    """Measure and finish a run, on one process. Raises StageFailedError, AttemptStopped, DamageError."""
    run, recipe = context.run, context.spec["recipe"]
    # 1. Record that the attempt begins, where the last one was stopped.
    arithmetic = arithmetic_of(context)
    known = saved_tensors(run.checkpoint / SUMS, arithmetic)
    done, length = known[0] if known else 0, recipe["sequence_length"]
    machine = begin_on_one_process(context, done * length)
    check_room(run.folder, SMALL_FILES)
    # 2. Load what is measured, and what it is measured on: sequences, and then pairs if the corpus has them.
    stage = usable_parent(context.store, context.spec["parent"])
    sequences = heldout_sequences(context.store.root, recipe["corpus"])
    labels = split_labels(context.store.root, recipe["corpus"], recipe.get("by"))
    asked = recipe.get(PREFERENCES)
    pairs = held_out(context.store, recipe["corpus"], asked["dpo"], asked[REFERENCE]) if asked else None
    tokenizer = stored_tokenizer(context.store.root, context.spec["tokenizer"])
    end_of_text = tokenizer.end_id if "documents" in stage.spec()["recipe"] else None
    model = machine.receive(measured_model(context, stage, recipe.get("average", 1.0)))
    sums = known[1] if known else no_sums(labels.numbers if labels else None) | {PREFERENCES: dpo.no_sums()}
    count = len(sequences)
    total = count + (len(pairs.reference) // PAIR if pairs else 0)
    if known:
        log_line(f"resumes after {done} of {total} sequences")
    pause = Pause(context, done * length, total * length)

    def between(now: int) -> None:
        pause(now * length, partial(save_tensors, run.checkpoint / SUMS, sums, now, arithmetic))

    # 3. Add up the losses, one batch after the other.
    with deterministic_kernels():
        found = heldout_loss(
            model,
            sequences,
            machine.device,
            machine.bf16,
            end_of_text=end_of_text,
            between=between,
            labels=labels.numbers if labels else None,
            done=min(done, count),
            sums=sums,
        )
        preferences = pairs and pairs.fields(
            pairs.preferences(
                model,
                machine.bf16,
                end_of_text=end_of_text,
                between=lambda more: between(count + more),
                done=max(0, done - count),
                sums=sums[PREFERENCES],
            )
        )
    # 4. Write the result.
    if not math.isfinite(found.loss):
        raise StageFailedError(f"the held-out loss is {found.loss}: the weights of {stage.key} have diverged", DIVERGED)
    log_line(f"held-out loss {found.loss:.4f} over {found.tokens:,} tokens")
    context.report(Progress(pause.total, pause.total))
    split = loss_fields(found, labels) | {"corpus": recipe["corpus"]}
    losses: dict[str, Any] = {"splits": {"heldout": split}, "steps": 0, "trained_tokens": 0}
    context.finish(None, {LOSSES: losses | ({PREFERENCES: {recipe["corpus"]: preferences}} if preferences else {})})


def measured_model(context: AttemptContext, stage: Run, average: float) -> PreTrainedModel:
    """The weights of a stage that are measured: from 0, those of its start, to 1, those of its end.

    Raises StageFailedError, DamageError.
    """
    model = load_model(stage.model)
    if average != 1:
        average_with(model, _start_of(context, stage), average)
    return model


def _start_of(context: AttemptContext, stage: Run) -> PreTrainedModel:
    """The model that a stage starts from: that of its parent, or the checkpoint of its recipe.

    Raises StageFailedError, DamageError.
    """
    spec = stage.spec()
    if spec["parent"] is not None:
        return load_model(usable_parent(context.store, spec["parent"]).model)
    return load_model(checkpoint_folder(context.store.root, spec["recipe"]["model"]["start"]))
