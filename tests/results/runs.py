"""Stores whose runs were registered from a real tree and finished by hand, without training."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from retain.launchers.planning.register import register
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.results.store.verify import run_problems
from retain.sweeps.base.files import write_json
from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.tree import Tree, expand
from tests.studies import made_up_facts, tiny_fields


def registered(root: Path, **overrides: Any) -> tuple[Tree, Store]:
    """The tiny study with overrides, every stage of it planned in a new or a present store."""
    root.mkdir(exist_ok=True)
    file = check_study(tiny_fields(**overrides), root / "tiny.yaml")
    facts = made_up_facts(file)
    tree = expand(file, facts)
    register(tree, file, facts, Store(root))
    return tree, Store(root)


def context_of(run: Run) -> AttemptContext:
    """What an attempt at a run works with, of a process that holds no lease."""
    return AttemptContext(Store(run.folder.parent), run, Ranks(), None, StopRequest())


def put_state(run: Run, state: State) -> None:
    """Give a run any state, whatever came before."""
    write_json(run.folder / "state.json", state.as_json())


def write_model(folder: Path, size: int = 1000) -> Path:
    """A folder as a trained model's: weights (4 · size bytes and a header), a configuration, a tokeniser."""
    folder.mkdir()
    save_file({"weight": numpy.arange(size, dtype=numpy.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}\n")
    (folder / "tokenizer.json").write_text("{}\n")
    return folder


def finish(run: Run, loss: float = 1.0) -> None:
    """One attempt that ends with the run done, with this loss on the split of each role, plus 1, 2, ... by role."""
    run.begin(os.getpid())
    roles = sorted(run.spec()["evaluation"])
    splits = {role: {"loss": loss + number, "tokens": 100} for number, role in enumerate(roles)}
    losses: Mapping[str, Any] = {"splits": splits, "steps": 1, "trained_tokens": 64}
    run.finish(write_model(run.folder / "model.partial"), {"losses.json": losses})


def finish_all(tree: Tree, store: Store, where: Callable[[str], bool] = lambda stage: True) -> None:
    """Finish every stage of a tree, or those of the kinds that `where` accepts."""
    for stage in tree.stages.values():
        if where(stage.stage):
            finish(store.run(stage.key))


def problems(store: Store) -> dict[str, list[str]]:
    """The problems of the runs that have some, by key."""
    return {run.key: found for run in store.runs() if (found := run_problems(store, run))}


def kinds(tree: Tree, store: Store, stage: str) -> list[Run]:
    """The runs of one kind of stage, in the tree's order."""
    return [store.run(key) for key, node in tree.stages.items() if node.stage == stage]


def of_stage(store: Path, stage: str) -> Run:
    """The first run of a store of one kind of stage."""
    return next(run for run in Store(store).runs() if run.spec()["stage"] == stage)


def set_back(run: Run) -> int:
    """Make a done run one that was stopped at its last kept state; the tokens that it had seen by then."""
    shutil.rmtree(run.model)
    (run.folder / "losses.json").unlink()
    put_state(run, replace(run.state(), state="planned", checksums={}))
    recipe = run.spec()["recipe"]
    step = int(max(run.checkpoint.glob("step-*")).name.removeprefix("step-"))
    return step * int(recipe["batch"] * recipe["sequence_length"])
