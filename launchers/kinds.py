"""The kinds of runs. A kind says what one attempt does and what it leaves; nothing else about a run differs.

To add a kind, write its module and enter it in KINDS. Launchers, store, jobs, retries, logs and status know only runs.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retain.results.store.runs import LOSSES, WEIGHTS, Run, Store
from retain.results.store.study_files import SUMMARY
from retain.sweeps.tree.linear_stage import LINEAR_METHOD

Spec = Mapping[str, Any]
"""The content of a run's stage.json."""


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of runs. `module` is imported when an attempt begins, so that launchers stay light.

    The module has a function `attempt(context)`: it makes one attempt at the run of an `AttemptContext`
    (launchers.stage.attempt), from `context.begin()` to `context.finish(...)`. It polls `context.stop`, saves what it needs
    to resume, and raises AttemptStopped; any other exception fails the run.
    """

    name: str
    module: str
    leaves: tuple[str, ...]
    """Patterns of the files that a done run has. Each must match a file with a checksum."""
    verify: str | None = None
    """A module with `problems(store, run, known) -> list[str]`, for `retain verify`; `known` is a cache of its own."""
    may_idle: bool = False
    """Whether an attempt may be stopped without progress as often as it takes: it waits for others."""

    def problems(self, store: Store, run: Run, known: dict[str, Any]) -> list[str]:
        """What is wrong with what a run computed, one sentence each."""
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
LINEAR = Kind("linear", "retain.launchers.stage.linear", leaves=(WEIGHTS, LOSSES))
SEARCH = Kind("search", "retain.launchers.search.attempt", leaves=(SUMMARY,), may_idle=True)

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (TRAINING, LINEAR, SEARCH)}


def kind_of(spec: Spec) -> Kind:
    """The kind of a run. Runs registered before there were kinds are training stages, some of them linear."""
    if "kind" in spec:
        return KINDS[spec["kind"]]
    return kind_of_recipe(spec["recipe"])


def kind_of_recipe(recipe: Mapping[str, Any]) -> Kind:
    """The kind of a stage of a study."""
    return LINEAR if recipe.get("method") == LINEAR_METHOD else TRAINING


def described(kind: Kind, tokens: int, needs: Sequence[str]) -> dict[str, Any]:
    """What stage.json says of a run for every reader: its kind, its work in tokens, the runs it needs, what it leaves."""
    return {"kind": kind.name, "tokens": tokens, "needs": list(needs), "leaves": list(kind.leaves)}
