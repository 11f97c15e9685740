"""The kinds of runs. A kind defines what one attempt does and which files it leaves; nothing else about a run differs.

To add a kind, write its module and add it to KINDS. Launchers, store, jobs, retries, logs and status know only runs.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retain.results.store.runs import LOSSES, MEASURES, WEIGHTS, Run, Store
from retain.results.store.state import ASSEMBLED, PART, SUBMITTED
from retain.results.store.study_files import SUMMARY
from retain.sweeps.base.errors import NewerFormatError
from retain.sweeps.tree.keys import HELDOUT_LOSS, TASK
from retain.sweeps.tree.linear_stage import LINEAR_METHOD

Spec = Mapping[str, Any]
"""The content of a run's stage.json."""


@dataclass(frozen=True)
class Kind:
    """Everything in which a kind of runs differs from other kinds."""

    name: str
    module: str
    """The module with the function `attempt(context)`, imported only when an attempt begins, so that launchers start fast.

    The function makes one attempt at the run of an `AttemptContext` (launchers.stage.attempt), from `context.begin()` to
    `context.finish(...)`. It polls `context.stop`; on a stop signal it saves what a resume needs, and raises AttemptStopped.
    Any other exception fails the run.
    """
    leaves: tuple[str, ...]
    """Patterns of the files that a done run has. Each must match a file with a checksum."""
    verify: str | None = None
    """A module with `problems(store, run, known) -> list[str]`, for `retain verify`; `known` caches what it has computed."""
    resumes: bool = True
    """Whether an attempt continues what the one before has saved."""
    may_idle: bool = False
    """Whether attempts may be stopped without progress any number of times, as they only wait for other runs."""

    def problems(self, store: Store, run: Run, known: dict[str, Any]) -> list[str]:
        """The problems in what a run computed, one sentence each."""
        if self.verify is None:
            return []
        check: Callable[[Store, Run, dict[str, Any]], list[str]] = importlib.import_module(self.verify).problems
        return check(store, run, known)


TRAINING = Kind(
    "training",
    "retain.launchers.stage.training.run",
    leaves=(WEIGHTS, LOSSES),
    verify="retain.launchers.checks.verify_tokens",
)
LINEAR = Kind("linear", "retain.launchers.stage.linear", leaves=(WEIGHTS, LOSSES), resumes=False)
EVALUATE = Kind("evaluate", "retain.launchers.stage.evaluate", leaves=(LOSSES,))
MEASURED_TASK = Kind("task", "retain.launchers.stage.tasks.run", leaves=(MEASURES,))
FISHER = Kind("fisher", "retain.launchers.stage.groundwork.fisher", leaves=(WEIGHTS,))
REFERENCE = Kind("reference", "retain.launchers.stage.groundwork.reference", leaves=(WEIGHTS,))
PREPARE = Kind("prepare", "retain.launchers.stage.preparation.part", leaves=(f"{PART}/*",), resumes=False)
ASSEMBLE = Kind("assemble", "retain.launchers.stage.preparation.assembly", leaves=(ASSEMBLED,), resumes=False)
CONTINUE = Kind("continue", "retain.launchers.jobs.data.continuation", leaves=(SUBMITTED,), resumes=False)
SEARCH = Kind("search", "retain.launchers.search.attempt", leaves=(SUMMARY,), may_idle=True)

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        *(TRAINING, LINEAR, EVALUATE, MEASURED_TASK, FISHER, REFERENCE),
        *(PREPARE, ASSEMBLE, CONTINUE, SEARCH),
    )
}


def kind_of(spec: Spec) -> Kind:
    """The kind of a run. Runs registered before kinds were recorded are training stages, some of them linear."""
    if "kind" in spec:
        if spec["kind"] not in KINDS:
            raise NewerFormatError(
                f"{spec['key']}: unknown kind of run {spec['kind']!r}; use the version that registered it"
            )
        return KINDS[spec["kind"]]
    return kind_of_recipe(spec["recipe"])


def kind_of_recipe(recipe: Mapping[str, Any]) -> Kind:
    """The kind of a stage of a study, of an evaluation of one, or of what one needs besides the stage before it."""
    if recipe.get("measure") in (HELDOUT_LOSS, TASK):
        return EVALUATE if recipe["measure"] == HELDOUT_LOSS else MEASURED_TASK
    for kind in (FISHER, REFERENCE):
        if recipe.get("measure") == kind.name:
            return kind
    return LINEAR if recipe.get("method") == LINEAR_METHOD else TRAINING


def described(kind: Kind, tokens: int, needs: Sequence[str]) -> dict[str, Any]:
    """The fields of stage.json that runs of all kinds have: kind, tokens to train on, needed runs, files of a done run."""
    return {"kind": kind.name, "tokens": tokens, "needs": list(needs), "leaves": list(kind.leaves)}
