"""The kind `fisher`: the diagonal Fisher information at the weights of a done stage, for the anchors of the stages below it.

An attempt saves its sums on the way, and the next one continues them to the same bits. It leaves
model/fisher.safetensors: a value for each weight, in fp32, by the names of the parent's parameters.
"""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from functools import partial

from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.order.stage_data import first_sequences
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.log import log_line
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.saving.pause import Pause
from retain.launchers.stage.saving.tensors import publish_tensors, save_tensors, saved_tensors
from retain.launchers.stage.training.choose_numerics import arithmetic_of, begin_on_one_process
from retain.lightning_modules.anchors.fisher import add_squares, information_per_token, no_squares
from retain.lightning_modules.compiled import deterministic_kernels
from retain.lightning_modules.models import load_model
from retain.lightning_modules.objective import predictions
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.state import FISHER_FILE
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.tree.cost import BYTES_PER_VALUE

SUMS = "sums.safetensors"
"""The file of saved sums in checkpoint/."""


def attempt(context: AttemptContext) -> None:
    """Estimate the information and finish a run, on one process. Raises StageFailedError, AttemptStopped, DamageError."""
    run, recipe = context.run, context.spec["recipe"]
    # 1. Record that the attempt begins, where the last one was stopped.
    arithmetic = arithmetic_of(context)
    known = saved_tensors(run.checkpoint / SUMS, arithmetic)
    done, length = known[0] if known else 0, recipe["sequence_length"]
    machine = begin_on_one_process(context, done * length)
    # 2. Load the weights and the sequences.
    stage = usable_parent(context.store, context.spec["parent"])
    sequences = first_sequences(context.store.root, recipe)
    if not int(predictions(sequences)):
        raise StageFailedError(
            f"none of the {len(sequences)} sequences has a token that is predicted; raise the anchor's sequences"
        )
    tokenizer = stored_tokenizer(context.store.root, context.spec["tokenizer"])
    end_of_text = tokenizer.end_id if "documents" in stage.spec()["recipe"] else None
    model = machine.receive(load_model(stage.model))
    weights = sum(one.numel() for one in model.parameters())
    check_room(run.folder, 2 * BYTES_PER_VALUE * weights + SMALL_FILES)
    squares = no_squares(model)
    if known:
        squares = {name: known[1][name].to(one.device) for name, one in squares.items()}
        log_line(f"resumes after {done} of {len(sequences)} sequences")
    # 3. Add up the squared gradients, one sequence after the other.
    pause = Pause(context, done * length, sequences.numel())
    with deterministic_kernels():
        for more in add_squares(model, sequences[done:], squares, machine.bf16, end_of_text):
            now = done + more
            pause(now * length, partial(save_tensors, run.checkpoint / SUMS, squares, now, arithmetic))
    # 4. Write the result.
    found = information_per_token(squares, sequences)
    if not all(one.isfinite().all() for one in found.values()):
        raise StageFailedError(
            f"the Fisher information is not finite: the weights of {stage.key} have diverged", DIVERGED
        )
    log_line(
        f"Fisher information of {weights:,} weights; its trace is {sum(float(one.sum()) for one in found.values()):.4g}"
    )
    publish_tensors(context, found, FISHER_FILE)
