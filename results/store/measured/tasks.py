"""The metrics of a stage's weights on the tasks of a study, as evaluations have measured them."""

from retain.results.store.runs import MEASURES, Run, Store
from retain.results.store.state import Measures, State, damaged_state
from retain.sweeps.base.documents import read_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.evaluation_runs import task_evaluation_of
from retain.sweeps.tree.tree import Stage, Tree, Trial

Measured = dict[tuple[str, float], dict[str, float | None]]
"""The metrics of weights by name; the weights by the key of the stage and the share of its end in their average."""


def trial_measures(
    tree: Tree, trial: Trial, store: Store, known: Measured, damaged: dict[str, State] | None
) -> dict[str, dict[str, float | None]]:
    """The metrics after each stage of a trial. known: what earlier trials have read; damaged: as in `trial_rows`."""
    found: dict[str, dict[str, float | None]] = {}
    for key in trial.path:
        stage, average = tree.stages[key], trial.average if key == trial.leaf else 1.0
        if (key, average) not in known:
            try:
                known[key, average] = stage_measures(stage, tree, store, average)
            except DamageError as error:
                if damaged is None:
                    raise
                damaged[key], known[key, average] = damaged_state(error), {}
        found[stage.stage] = known[key, average]
    return found


def stage_measures(stage: Stage, tree: Tree, store: Store, average: float = 1.0) -> dict[str, float | None]:
    """The metrics of a stage's weights on the tasks of a study, as TASK/METRIC; None if not measured. Raises DamageError."""
    found: dict[str, float | None] = {}
    for name, task in tree.tasks.get(stage.stage, {}).items():
        run = store.run(task_evaluation_of(stage, name, task, average).key)
        if run.is_done():
            found |= {f"{name}/{metric}": one["value"] for metric, one in measures_of(run)["metrics"].items()}
        else:
            found |= dict.fromkeys((f"{name}/{metric}" for metric in task.metrics), None)
    return found


def measures_of(run: Run) -> Measures:
    """What a done evaluation has measured on a task. Raises DamageError."""
    path, cure = run.folder / MEASURES, f"delete {run.folder}, and retain evaluate measures it again"
    try:
        return read_document(path, Measures, cure)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing; {cure}") from None
