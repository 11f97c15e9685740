"""What SLURM starts in each task: a small object that submitit pickles. It reads everything else from the store."""

import importlib
from dataclasses import dataclass

from retain.sweeps.base.errors import DamageError


@dataclass(frozen=True)
class RunJob:
    """One task of a submission."""

    store: str
    token: str

    def __call__(self) -> str:
        """Do the runs of the task; returns how they ended, which submitit keeps. Raises SystemExit if a run failed."""
        # Imported by name, so that a submitter does not import what only jobs need.
        try:
            ending: str = importlib.import_module("retain.launchers.jobs.job").do_task(self.store, self.token)
        except DamageError as error:
            raise SystemExit(f"retain: {error}") from None
        return ending


def call(job: RunJob) -> str:
    """The function that submitit calls in each task of an array."""
    return job()
