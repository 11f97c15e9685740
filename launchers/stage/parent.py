"""The run that a stage starts from."""

from collections.abc import Mapping
from typing import Any

from retain.results.store.garbage import freed_sentence
from retain.results.store.runs import Run, Store
from retain.results.store.verify import damaged_files
from retain.sweeps.base.errors import StageFailedError


def usable_parent(store: Store, spec: Mapping[str, Any]) -> Run:
    """The parent of a stage, done and with undamaged weights. Raises StageFailedError."""
    return usable_start(store.run(spec["parent"]))


def usable_start(run: Run) -> Run:
    """A run whose weights can be started from. Raises StageFailedError."""
    if not run.is_done():
        raise StageFailedError(f"its parent {run.key} is not done; run the study again")
    if run.state().weights_freed:
        raise StageFailedError(freed_sentence([run]))
    if damaged := damaged_files(run):
        raise StageFailedError(f"{run.folder}: {damaged[0]}; delete this folder and run the study again")
    return run
