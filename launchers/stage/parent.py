"""The run that a stage starts from."""

from retain.results.store.garbage import freed_sentence
from retain.results.store.runs import Run, Store
from retain.results.store.verify import damaged_files
from retain.sweeps.base.errors import DamageError, StageFailedError


def usable_parent(store: Store, key: str, name: str = "the parent") -> Run:
    """The run that a stage starts from, or another one that it needs, called `name` in messages.

    Raises StageFailedError if it is not done or its weights are freed, or DamageError.
    """
    run = store.run(key)
    if not run.is_done():
        raise StageFailedError(f"{name} {run.key} is not done; run the study again")
    if run.state().weights_freed:
        raise StageFailedError(freed_sentence([run]))
    if damaged := damaged_files(run):
        raise DamageError(f"{run.folder}: {damaged[0]}; delete this folder and run the study again")
    return run
