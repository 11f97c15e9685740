"""The run that a stage starts from."""

from collections.abc import Mapping
from typing import Any

from retain.results.store.garbage import freed_sentence
from retain.results.store.runs import Run, Store
from retain.results.store.verify import damaged_files
from retain.sweeps.base.errors import StageFailedError


def done_parent(store: Store, spec: Mapping[str, Any]) -> Run:
    """The parent of a stage that has one, done, with its weights there and undamaged. Raises StageFailedError."""
    parent = store.run(spec["parent"])
    if not parent.is_done():
        raise StageFailedError(f"its parent {parent.key} is not done; run the study again")
    if parent.state().weights_freed:
        raise StageFailedError(freed_sentence([parent]))
    if damaged := damaged_files(parent):
        raise StageFailedError(f"{parent.folder}: {damaged[0]}; delete this folder and run the study again")
    return parent
