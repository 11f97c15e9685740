"""The kind `reference`: the log-probability of each response of a corpus of pairs, at the weights that DPO starts from.

An attempt saves what it has on the way, and the next one continues to the same bits. It leaves
model/reference.safetensors: for each split the log-probabilities of the chosen and of the rejected response of every pair,
summed over the tokens of the response, in fp64 [pairs, 2].
"""

import os

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from retain.datamodules.corpora.checkpoints.stored import checkpoint_folder
from retain.datamodules.corpora.prepared import SPLITS, packed_corpus, stored_tokenizer
from retain.datamodules.order.stage_data import read_pairs
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED
from retain.launchers.stage.log import log_line
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.saving.pause import Pause
from retain.launchers.stage.saving.tensors import publish_tensors, save_tensors, saved_tensors
from retain.launchers.stage.training.choose_numerics import Machine, arithmetic_of, begin_on_one_process
from retain.lightning_modules.compiled import deterministic_kernels, uncompiled
from retain.lightning_modules.models import load_model
from retain.lightning_modules.preferences.dpo import log_probabilities
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.state import REFERENCE_FILE
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.tree.cost import BYTES_PER_LOG_PROBABILITY
from retain.sweeps.tree.recipes.preference import PAIR

PAIRS_AT_A_TIME = 8
"""Pairs of a forward pass. The number is fixed, as the size of a batch changes the last digits."""
SAVED = "log_probabilities.safetensors"
"""The file of what is computed so far, in checkpoint/."""


def attempt(context: AttemptContext) -> None:
    """Compute the log-probabilities and finish a run, on one process.

    Raises StageFailedError, AttemptStopped, DamageError.
    """
    run, recipe = context.run, context.spec["recipe"]
    # 1. Record that the attempt begins, where the last one was stopped.
    arithmetic = arithmetic_of(context)
    known = saved_tensors(run.checkpoint / SAVED, arithmetic)
    done, length = known[0] if known else 0, recipe["sequence_length"]
    machine = begin_on_one_process(context, done * length)
    # 2. Load the weights, and see how many pairs there are.
    model, end_of_text = _start(context, machine)
    packed = packed_corpus(context.store.root, recipe["corpus"])
    found = {split: torch.zeros(packed.count(split), PAIR, dtype=torch.float64) for split in SPLITS}
    total = sum(one.numel() for one in found.values())
    check_room(run.folder, 2 * BYTES_PER_LOG_PROBABILITY * total + SMALL_FILES)
    if known:
        found = known[1]
        log_line(f"resumes after {done} of {total} sequences")
    # 3. Compute them, some pairs after the others.
    pause = Pause(context, done * length, total * length)
    with deterministic_kernels():
        for split, rows in _blocks(found, done):
            pairs = read_pairs(packed, split, rows).to(machine.device)
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.bf16), uncompiled(model):
                found[split][rows] = log_probabilities(model, pairs, end_of_text).view(-1, PAIR).cpu()
            done += len(pairs)
            pause(done * length, partial(save_tensors, run.checkpoint / SAVED, found, done, arithmetic))
    # 4. Write the result.
    if not all(one.isfinite().all() for one in found.values()):
        raise StageFailedError("a reference log-probability is not finite: the weights have diverged", DIVERGED)
    for split, one in found.items():
        mean = one.mean(dim=0).tolist()
        log_line(f"{split}: {len(one):,} pairs; mean log-probability {mean[0]:.4g} chosen, {mean[1]:.4g} rejected")
    publish_tensors(context, found, REFERENCE_FILE)


def _start(context: AttemptContext, machine: Machine) -> tuple[PreTrainedModel, int | None]:
    """The model that the stages start from, on its device, and the end of text if tokens attend within documents.

    Raises StageFailedError, DamageError.
    """
    recipe, store = context.spec["recipe"], context.store
    if context.spec["parent"] is not None:
        parent = usable_parent(store, context.spec["parent"])
        folder, within = parent.model, "documents" in parent.spec()["recipe"]
    else:
        folder, within = checkpoint_folder(store.root, recipe["model"]["start"]), "documents" in recipe
    tokenizer = stored_tokenizer(store.root, context.spec["tokenizer"])
    model = machine.receive(load_model(folder))
    model.train(False)
    return model, tokenizer.end_id if within else None


def _blocks(found: dict[str, torch.Tensor], done: int) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield splits and numbers of pairs in them, PAIRS_AT_A_TIME together, without the first `done` sequences."""
    for split in SPLITS:
        for first in range(0, len(found[split]), PAIRS_AT_A_TIME):
            rows = np.arange(first, min(first + PAIRS_AT_A_TIME, len(found[split])))
            if done <= 0:
                yield split, rows
            done -= PAIR * len(rows)
