"""Register the stages of a tree in the store, so that any process can train one from its key alone."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from retain.datamodules.corpora.responses.chat import local_template
from retain.launchers.kinds import described, kind_of_recipe
from retain.results.store.runs import SPEC, Store
from retain.results.store.state import CHAT_TEMPLATE, KEEPS_OPTIMIZER
from retain.sweeps.base.processes.many_writes import each_written
from retain.sweeps.schema.execution import StageExecution
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import GROUNDWORK, stage_kind
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.evaluation_runs import asked_evaluations, corpora_after
from retain.sweeps.tree.heldout_splits import PREFERENCES, other_splits, preferences_of, splits_of, used_corpora
from retain.sweeps.tree.keys import FORMAT
from retain.sweeps.tree.tree import Stage, Tree

AT_A_TIME = 1000
"""Number of stages whose recipes are in memory at a time."""
PACKAGES = ("retain-lm", "torch", "lightning", "transformers", "tokenizers", "numpy")
EVALUATIONS_OF_A_PROCESS = 1000
"""The most evaluations that one process makes, as starting one takes longer than a small evaluation."""
EVALUATIONS_OF_A_JOB = 64
"""The most evaluations of one job. It waits for all stages that they measure, whose jobs sbatch is told one by one."""


def register(
    tree: Tree,
    file: StudyFile,
    facts: Facts,
    store: Store,
    executions: Mapping[str, Mapping[str, Any]] | None = None,
    measured: bool = False,
) -> None:
    """Write stage.json and a first state.json for every stage, and every evaluation of one, that the store does not have.

    executions: how each stage is executed, by key: for SLURM, see `launchers.jobs.resources`; None: as the study says.
    measured: whether a stage is measured on the corpora of `evaluate` when it ends; otherwise evaluation runs do it.
    """
    versions = installed_versions()
    here = {kind: file.study.execution.of_stage(kind).model_dump(mode="json") for kind in tree.chain}
    used, after, carried = used_corpora(tree), corpora_after(tree) if measured else {}, tree.carried()
    values = {(tree.corpora[name, length], length): own.fingerprint for (name, length), own in tree.values.items()}
    settings = getattr(file.study, "tokenizer", None)
    template = local_template(settings, file.folder) if settings else None
    evaluations: dict[str, dict[str, Any]] = {}

    def specs(stages: Iterable[Stage]) -> Iterator[dict[str, Any]]:
        for stage in stages:
            recipe = json.loads(stage.recipe)
            above = evaluations[stage.parent] if stage.parent else {}
            trains = stage.stage not in GROUNDWORK
            splits = splits_of(stage.stage, recipe, above) if trains else {"evaluation": {}}
            if trains and (pairs := preferences_of(stage.parent, recipe, above.get(PREFERENCES, {}))):
                splits[PREFERENCES] = pairs
            evaluations[stage.key] = splits
            length = recipe.get("sequence_length", 0)
            measured_on = after.get((stage.stage, length), used.get(length, {})) if trains else {}
            others = other_splits(splits["evaluation"], measured_on)
            corpora = {*map(str, splits["evaluation"].values()), *others.values()}
            by = {corpus: values[corpus, length] for corpus in sorted(corpora) if (corpus, length) in values}
            yield (
                stage_spec(stage, recipe)
                | described(kind_of_recipe(recipe), stage.tokens, stage.needs)
                | splits
                | ({"others": others} if others else {})
                | ({"values": by} if by else {})
                | ({KEEPS_OPTIMIZER: True} if stage.key in carried else {})
                | ({CHAT_TEMPLATE: template} if template else {})
                | {
                    "tokenizer": facts.tokenizer,
                    "execution": executions[stage.key] if executions else as_here(here[stage.stage], store, stage.key),
                    "axes": stage.axes,
                    "study": tree.study,
                    "versions": versions,
                }
            )

    waiting = iter(tree.stages.values())
    while some := list(islice(waiting, AT_A_TIME)):
        each_written(lambda spec: store.register(spec["key"], spec), specs(some))
    if not measured:
        # Planned from now on, so that `retain gc --weights` keeps what they measure.
        asked = asked_evaluations(tree, facts.heldout_tokens)
        known = executions if executions and asked.keys() <= executions.keys() else None
        register_evaluations(asked, tree, file, facts, store, known)


def register_evaluations(
    evaluations: Mapping[str, Stage],
    tree: Tree,
    file: StudyFile,
    facts: Facts,
    store: Store,
    executions: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """`register` for evaluations of stages of a tree. Each runs as its stage does, on one device; a process measures many."""
    versions = installed_versions()

    def write(one: Stage) -> None:
        assert one.parent is not None
        recipe = json.loads(one.recipe)
        if executions:
            execution = dict(executions[one.key])
        else:
            own = file.study.execution.of_stage(tree.stages[one.parent].stage)
            execution = as_here(one_device(own).model_dump(mode="json"), store, one.key)
        fields = {
            "evaluation": {},
            "tokenizer": facts.tokenizer,
            "execution": execution,
            "axes": one.axes,
            "study": tree.study,
            "versions": versions,
        }
        spec = stage_spec(one, recipe) | described(kind_of_recipe(recipe), one.tokens, one.needs) | fields
        store.register(one.key, spec)

    each_written(write, evaluations.values())


def one_device(execution: StageExecution) -> StageExecution:
    """How the evaluations of a stage are executed: as the stage, on one device, and many by one process."""
    slurm = execution.slurm.model_copy(update={"nodes": 1})
    return execution.model_copy(update={"devices": 1, "pack": EVALUATIONS_OF_A_PROCESS, "slurm": slurm})


def installed_versions() -> dict[str, str]:
    """The versions of the packages that results may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}


def as_here(execution: Mapping[str, Any], store: Store, key: str) -> dict[str, Any]:
    """How a stage is executed on this machine. The SLURM options of an earlier submission are kept, for queued jobs."""
    run = store.run(key)
    if not os.path.lexists(run.folder / SPEC):
        return dict(execution)
    return {**execution, "slurm": run.spec()["execution"]["slurm"]}


def stage_spec(stage: Stage, recipe: dict[str, Any]) -> dict[str, Any]:
    """The key of a stage and its payload, and the name of a further stage."""
    kind = stage_kind(stage.stage)
    spec = {"key": stage.key, "format": FORMAT, "stage": kind, "parent": stage.parent, "recipe": recipe}
    return spec if kind == stage.stage else spec | {"name": stage.stage}
