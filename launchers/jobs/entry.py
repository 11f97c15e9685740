"""What SLURM starts in each task: submitit pickles a reference to this function, which reads everything from the store."""

import importlib

from retain.sweeps.base.errors import MissingResourceError


def do_task(store: str, token: str) -> str:
    """Do the runs of a task; returns how they ended, which submitit keeps. Raises SystemExit if a run failed."""
    # Imported by name, so that a submitter does not import what only jobs need.
    try:
        ending: str = importlib.import_module("retain.launchers.jobs.job").do_task(store, token)
    except MissingResourceError as error:
        raise SystemExit(f"retain: {error}") from None
    return ending
