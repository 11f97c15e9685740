"""The micro-batch of a GPU: the most sequences that fit, found once for each shape of stage and kept in the store."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import PreTrainedModel

from retain.lightning_modules.compiled import uncompiled
from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.objective import summed_loss
from retain.results.store.disk import MOMENT_BYTES
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError

FOLDER = Path("cache") / "micro-batch"
FILLED = 0.9
"""The share of a GPU's memory that a step may use, including AdamW's moments."""
ANCHOR_BYTES = 4
"""The starting value of a trained parameter, in fp32, which an anchor keeps; one with `ewc` keeps as much again."""
BUCKET_BYTES = 4
"""The gradient of a trained parameter in DDP's buckets, beside the one that micro-batches add up to."""
OTHERS_BYTES = 2 * 2**30
"""More than the driver and the kernels of this process occupy on a GPU that no other process uses."""


class _Answer(TypedDict):
    """What is known of a shape of stage: the sequences that fit, and the fewest that do not."""

    fits: int
    too_many: int | None


def stage_shape(
    model: PreTrainedModel, recipe: Mapping[str, Any], bf16: bool, world: int, checkpointing: bool = False
) -> dict[str, Any]:
    """Everything that decides how much memory a sequence needs."""
    config = model.config
    shape = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "family": config.model_type,
        "model": [getattr(config, name, None) for name in (*shape, "vocab_size", "tie_word_embeddings")],
        "trained": sum(parameter.numel() for _, parameter in trained_parameters(model)),
        "length": recipe["sequence_length"],
        "dropout": recipe["dropout"] > 0,
        "precision": "bf16" if bf16 else "fp32",
        "world": world,
        # Absent without it, so that earlier answers are found.
        **({"documents": recipe["documents"]} if "documents" in recipe else {}),
        **({"anchor": "ewc" if "ewc" in recipe["anchor"] else True} if "anchor" in recipe else {}),
        **({"checkpointing": True} if checkpointing else {}),
    }


def micro_batch_for(
    store: Path, shape: Mapping[str, Any], share: int, fits: Callable[[int], bool], keep: bool = True
) -> int:
    """The micro-batch in sequences, at most a rank's `share` of a batch.

    fits: tries a number of sequences; it is called only if the store has no answer. keep: whether to keep the answer.
    """
    text = json.dumps(shape, sort_keys=True)
    place = store / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    try:
        known = read_answer(place)
    except (FileNotFoundError, DamageError):  # it is measured again
        known = {"fits": 0, "too_many": None}
    # A smaller share that fitted whole does not answer how much of a larger one fits.
    if share <= known["fits"] or known["too_many"] is not None:
        return evenly(share, int(known["fits"]))
    most, too_many = largest_that_fits(share, fits)
    # Halving the share may miss a size that is known to fit.
    most = max(most, int(known["fits"]))
    if keep:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_document(place, {"fits": most, "too_many": too_many, "of": dict(shape)})
    return evenly(share, most)


def read_answer(path: Path) -> _Answer:
    """An answer that the store keeps. Raises FileNotFoundError, DamageError."""
    return read_document(path, _Answer, "delete this file, and it is measured again")


def evenly(share: int, most: int) -> int:
    """The size of the parts if a share is cut into as few equal parts as `most` allows: a smaller rest would run uncompiled."""
    return -(-share // -(-share // most))


def largest_that_fits(share: int, fits: Callable[[int], bool]) -> tuple[int, int | None]:
    """The share, halved until it fits (at least one sequence), and the last size that did not fit (None: the share fits)."""
    size, too_many = share, None
    while size > 1 and not fits(size):
        size, too_many = -(-size // 2), size
    return size, too_many


def is_shared(device: torch.device) -> bool:
    """Whether other processes occupy much of the GPU's memory, so that more or less may fit later."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > OTHERS_BYTES


def kept_bytes(model: PreTrainedModel, recipe: Mapping[str, Any], world: int = 1) -> int:
    """The bytes that a step keeps on a GPU besides weights, gradients and activations. world: ranks, each with all weights."""
    anchor = recipe.get("anchor", {})
    kept = MOMENT_BYTES + ANCHOR_BYTES * (bool(anchor) + ("ewc" in anchor)) + BUCKET_BYTES * (world > 1)
    return kept * sum(parameter.numel() for _, parameter in trained_parameters(model))


def fits_on_gpu(
    model: PreTrainedModel,
    recipe: Mapping[str, Any],
    bf16: bool,
    device: torch.device,
    end_of_text: int | None = None,
    world: int = 1,
) -> Callable[[int], bool]:
    """A function that tries whether a number of sequences fits, with an uncompiled step; compiled steps need less memory."""
    length = recipe["sequence_length"]
    memory = torch.cuda.get_device_properties(device).total_memory
    room = FILLED * memory - kept_bytes(model, recipe, world)

    def fits(size: int) -> bool:
        # Memory that the allocator kept from an earlier stage of this process must not count.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        tokens = torch.arange(size * length, device=device).view(size, length) % model.config.vocab_size
        if end_of_text is not None:
            tokens[:, length // 2] = end_of_text  # two documents a sequence, so that their mask is in memory
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16), uncompiled(model):
                summed_loss(model, tokens, end_of_text=end_of_text).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(device) <= room

    return fits
