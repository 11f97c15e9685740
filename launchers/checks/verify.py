"""`retain verify`: the runs of a store, the data that they were trained on, and the tokens that they saw."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from retain.datamodules.corpora.packing import packed_problem
from retain.datamodules.order.batches import recipe_digest
from retain.datamodules.order.digest import add_digests, as_text
from retain.results.store.runs import Run, Store
from retain.results.store.verify import Problem, verify_runs
from retain.sweeps.base.errors import RetainError
from retain.sweeps.tree.linear_recipes import LINEAR_METHOD

NOT_OF_THE_ORDER = ("model", "method", "lora", "lr", "min_lr", "warmup", "weight_decay", "betas", "clip", "dropout")
"""Fields of a recipe that change nothing about which tokens it reads, and when."""


def verify_store(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """How many runs were checked (those of `keys`, or all), and every problem of these and of the packed corpora."""
    checked, problems = verify_runs(store, keys)
    folders = sorted((store.root / "corpora").glob("*"))
    problems += [Problem(f"corpora/{folder.name}", what) for folder in folders if (what := packed_problem(folder))]
    unreadable = {problem.where for problem in problems}
    known: dict[str, str] = {}
    for run in store.runs():
        if (keys is None or run.key in keys) and run.key not in unreadable:
            problems += [Problem(run.key, what) for what in token_problems(store, run, known)]
    return checked, problems


def token_problems(store: Store, run: Run, known: dict[str, str]) -> list[str]:
    """Where the tokens that a run consumed are not those of its recipe: at its end, or at a resumable state.

    A stage of a linear study consumes none. known: see `_expected_digest`.
    """
    recipe = run.spec()["recipe"]
    if recipe.get("method") == LINEAR_METHOD:
        return []
    proofs, damaged = _saved_digests(run) if run.checkpoint.exists() else ({}, [])
    if run.is_done():
        losses = run.losses()
        proofs["its end"] = (losses["steps"], losses["token_digest"])
    try:
        wrong = [
            where for where, (step, digest) in proofs.items() if _expected_digest(recipe, store, step, known) != digest
        ]
    except RetainError as error:
        return [*damaged, f"its tokens cannot be compared with its recipe: {error}"]
    cure = "delete the run's folder and train it again"
    return [*damaged, *(f"up to {where} it saw other tokens than its recipe says; {cure}" for where in wrong)]


def _expected_digest(recipe: Mapping[str, Any], store: Store, step: int, known: dict[str, str]) -> str:
    """The token proof of the first steps of a recipe.

    known: those made so far; recipes that differ in nothing but what does not order the data share theirs.
    """
    order = json.dumps([step, {name: value for name, value in recipe.items() if name not in NOT_OF_THE_ORDER}])
    if order not in known:
        known[order] = as_text(recipe_digest(recipe, store.root, step))
    return known[order]


def _saved_digests(run: Run) -> tuple[dict[str, tuple[int, str]], list[str]]:
    """The token proofs of a run's resumable states, by where they are, and the sentences about damaged states."""
    from retain.launchers.stage.training.checkpoints import open_state, saved_states  # imports torch

    proofs: dict[str, tuple[int, str]] = {}
    damaged = []
    for folder in saved_states(run.checkpoint):
        try:
            state = open_state(folder, check=False)
            digest = add_digests(int(rank["own"]["digest"], 16) for rank in state.ranks)
            proofs[f"step {state.step}"] = (state.step, as_text(digest))
        except (ValueError, KeyError):
            if folder.exists():  # a run at work has replaced it otherwise
                damaged.append(f"the state {folder.name} is damaged; the next attempt goes on from an older one")
    return proofs, damaged
