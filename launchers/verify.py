"""`retain verify`: the runs of a store, the data that they were trained on, and the tokens that they saw."""

import json
from collections.abc import Collection
from pathlib import Path

from datamodules.batches import recipe_digest
from datamodules.digest import add_digests, as_text
from datamodules.packing import packed_problem
from results.store import Run, Store
from results.verify import Problem, verify_runs
from sweeps.errors import RetainError


def verify_store(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """How many runs were checked (those of `keys`, or all), and every problem of these and of the packed corpora."""
    checked, problems = verify_runs(store, keys)
    folders = sorted((store.root / "corpora").glob("*"))
    problems += [Problem(f"corpora/{folder.name}", what) for folder in folders if (what := packed_problem(folder))]
    unreadable = {problem.where for problem in problems}
    for run in store.runs():
        if (keys is None or run.key in keys) and run.key not in unreadable:
            problems += [Problem(run.key, what) for what in token_problems(store, run)]
    return checked, problems


def token_problems(store: Store, run: Run) -> list[str]:
    """Where the tokens that a run consumed are not those of its recipe: at its end, or at a resumable state."""
    recipe = run.spec()["recipe"]
    proofs = {f"step {step}": (step, digest) for step, digest in (_state_proof(path) for path in _states(run))}
    if run.is_done():
        losses = run.losses()
        proofs["its end"] = (losses["steps"], losses["token_digest"])
    try:
        wrong = [
            where
            for where, (step, digest) in proofs.items()
            if as_text(recipe_digest(recipe, store.root, step)) != digest
        ]
    except RetainError as error:
        return [f"its tokens cannot be compared with its recipe: {error}"]
    cure = "delete the run's folder and train it again"
    return [f"up to {where} it saw other tokens than its recipe says; {cure}" for where in wrong]


def _states(run: Run) -> list[Path]:
    return sorted(run.checkpoint.glob("step-*/state.json"))


def _state_proof(manifest: Path) -> tuple[int, str]:
    """Step and token proof of a resumable state, over all its ranks."""
    state = json.loads(manifest.read_text())
    ranks = [json.loads((manifest.parent / name).read_text()) for name in state["files"]]
    return int(state["step"]), as_text(add_digests(int(rank["own"]["digest"], 16) for rank in ranks))
