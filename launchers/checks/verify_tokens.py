"""The check of runs of the kind `training`: the tokens that a run consumed are those of its recipe."""

import json
import os
from collections.abc import Mapping
from typing import Any

from retain.datamodules.order.batches import recipe_digest
from retain.datamodules.order.digest import add_digests, as_text
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import DamageError, RetainError

NOT_OF_THE_ORDER = (
    *("model", "method", "lora", "dropout", "clip", "lr", "min_lr", "warmup", "schedule", "floor"),
    *("optimizer", "betas", "weight_decay", "decay", "documents", "anchor"),
)
"""Recipe fields that do not change which tokens are read, and when."""


def problems(store: Store, run: Run, known: dict[str, Any]) -> list[str]:
    """Where a run has consumed other tokens than those of its recipe: up to its end, or up to a checkpoint.

    known: the digests that were computed so far.
    """
    recipe = run.spec()["recipe"]
    digests, damaged = _saved_digests(run) if run.checkpoint.exists() else ({}, [])
    if run.is_done():
        losses = run.losses()
        digests["its end"] = (losses["steps"], losses.get("token_digest", ""))
    try:
        wrong = [
            where for where, (step, digest) in digests.items() if _expected_digest(recipe, store, step, known) != digest
        ]
    except RetainError as error:
        return [*damaged, f"its tokens cannot be compared with its recipe: {error}"]
    cure = "delete the run's folder and train it again"
    return [
        *damaged,
        *(f"the tokens that the run consumed up to {where} are not those of its recipe; {cure}" for where in wrong),
    ]


def _expected_digest(recipe: Mapping[str, Any], store: Store, step: int, known: dict[str, Any]) -> str:
    """The data digest of the first steps of a recipe; recipes that read the same tokens in the same order share it."""
    order = json.dumps([step, {name: value for name, value in recipe.items() if name not in NOT_OF_THE_ORDER}])
    if order not in known:
        known[order] = as_text(recipe_digest(recipe, store.root, step))
    return str(known[order])


def _saved_digests(run: Run) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The step and data digest of each checkpoint of a run, and a sentence for each damaged checkpoint."""
    from retain.launchers.stage.training.checkpoints import checkpoint_folders, open_checkpoint  # imports torch

    digests: dict[str, tuple[int, str]] = {}
    damaged = []
    for folder in checkpoint_folders(run.checkpoint):
        try:
            saved = open_checkpoint(folder, check=False)
            digest = add_digests(int(rank["own"]["digest"], 16) for rank in saved.ranks)
            digests[f"step {saved.step}"] = (saved.step, as_text(digest))
        except DamageError as error:
            damaged.append(str(error))
        except (ValueError, KeyError, TypeError) as error:
            if os.path.lexists(folder):  # otherwise a running attempt has replaced it
                damaged.append(f"checkpoint {error}; the next attempt resumes from an older one")
    return digests, damaged
