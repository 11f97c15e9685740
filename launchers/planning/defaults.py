"""The defaults that depend on the machine: what they are for the stages of a study, by what the store knows, and why."""

import json
from collections.abc import Collection, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from retain.launchers.kinds import TRAINING, kind_of_recipe
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.speed.choice import planned_choices
from retain.launchers.speed.folder import is_private, private_folder, processor_name
from retain.launchers.speed.measured import Speeds, read_speeds
from retain.launchers.speed.shape import place_of, step_shape, steps_so_far
from retain.results.analysis.axes import grouped
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.base.units import counted
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.section import GROUNDWORK
from retain.sweeps.tree.tree import Stage, Tree

AUTO = "auto"


def planned_defaults(opened: OpenedStudy) -> list[str]:
    """What precision and compilation the stages of the chain have where the study leaves them open, and why, as sentences.

    Stages for which the same holds share one. Of several stages of one name, the longest counts. Measured speeds are those of
    this kind of processor. Then a sentence on where stages train here, and how many at a time.
    """
    found = grouped(_choices(opened.tree, opened), itemgetter(1))
    sentences = [f"{', '.join(name for name, _ in named)} {choice}" for choice, named in found.items()]
    return [*sentences, *_on_this_machine(opened.file.study.execution, [name for name, _ in _longest(opened.tree)])]


def _on_this_machine(execution: Execution, chain: Collection[str]) -> Iterator[str]:
    """Yield where stages train here and how many at a time, as far as the study leaves them open."""
    stages, cores = [execution.of_stage(name) for name in chain], usable_cores()
    clauses = []
    if any(stage.accelerator != "gpu" for stage in stages) and execution.parallel is None:
        count = execution.stages_at_a_time(chain, cores)
        most = max(stage.threads * stage.devices for stage in stages)
        why = f"because it has {counted(cores, 'core')} and a stage uses {counted(most, 'thread')}"
        clauses.append(f"on CPUs, {count:,} at a time, {why}")
    on_gpus = [stage for stage in stages if stage.accelerator != "cpu"]
    asked = ["on GPUs, if it has any"] if any(stage.accelerator == AUTO for stage in on_gpus) else []
    fitting = ["in the largest micro-batches that fit"] if any(stage.micro_batch is None for stage in on_gpus) else []
    if asked or fitting:
        clauses.append(", ".join([*(asked or ["on GPUs"]), *fitting]))
    if clauses:
        yield f"on this machine stages train {'; '.join(clauses)}"


def _longest(tree: Tree) -> Iterator[tuple[str, Stage]]:
    """Yield the name of each stage of the chain that trains, and the longest stage of that name."""
    for name in (name for name in tree.chain if name not in GROUNDWORK):
        of_name = [stage for stage in tree.stages.values() if stage.stage == name]
        longest = max(of_name, key=lambda stage: stage.tokens, default=None)
        if longest is not None and kind_of_recipe(json.loads(longest.recipe)) is TRAINING:
            yield name, longest


def _choices(tree: Tree, opened: OpenedStudy) -> Iterator[tuple[str, str]]:
    """Yield the name of a stage, and what it has on GPUs or on CPUs."""
    for name, longest in _longest(tree):
        execution = opened.file.study.execution.of_stage(name).model_dump(mode="json")
        opens = [field for field in ("precision", "compile") if execution[field] == AUTO]
        if not opens:
            continue
        if execution["accelerator"] != "cpu":
            yield name, f"on GPUs: {' and '.join({'precision': 'bf16', 'compile': 'compiled'}[one] for one in opens)}"
        if execution["accelerator"] != "gpu":
            words = _on_cpus(tree, longest, execution, opened.store.root)
            yield name, f"on CPUs like this one's ({processor_name()}): {'; '.join(words)}"


def _on_cpus(tree: Tree, stage: Stage, execution: Mapping[str, Any], store: Path) -> list[str]:
    path = [json.loads(one.recipe) for one in _upwards(tree, stage)][::-1]
    siblings = sum(one.stage == stage.stage and one.parent == stage.parent for one in tree.stages.values())
    steps = path[-1]["steps"] * min(execution["pack"], siblings)
    speeds = known_speeds(store, step_shape(path, execution))
    return planned_choices(execution["precision"], execution["compile"], speeds, steps_so_far(path), steps)


def _upwards(tree: Tree, stage: Stage) -> Iterator[Stage]:
    yield stage
    while stage.parent is not None:
        stage = tree.stages[stage.parent]
        yield stage


def known_speeds(store: Path, shape: Mapping[str, Any]) -> Speeds | None:
    """The speeds of a shape that this user's processes have measured on this kind of processor; None if there are none."""
    folder = private_folder(store)
    try:
        return read_speeds(place_of(folder, shape)) if is_private(folder.parent) else None
    except OSError:
        return None
