"""The results of a study as far as they are there: its loss table, its overview figure and its TensorBoard view."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.results.figures.overview import draw_losses
from retain.results.figures.style import missing_trials
from retain.results.figures.theory import draw_theory
from retain.results.store.loss_table import Row, finished_trials, save_rows, trial_rows
from retain.results.store.measured.blanks import blank_reasons
from retain.results.store.readiness import blocked_stages, written_state
from retain.results.store.runs import Store
from retain.results.store.state import DAMAGED, State, StateSummary, damaged_state
from retain.results.store.status import StatusReader
from retain.results.store.study_files import SavedLooks, looks_of, study_folder
from retain.results.tensorboard.views import link_runs, view_folder
from retain.sweeps.base.errors import MAY_NOT, NO_ROOM, DamageError, os_reason
from retain.sweeps.base.notices import notice
from retain.sweeps.base.units import counted
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.tree import Axes, Tree, axes_label

BLOCKED = ("stage below it is blocked", "stages below it are blocked")


@dataclass(frozen=True)
class Failure:
    """A stage that failed, was cancelled, or is damaged."""

    key: str
    """The key of the run."""
    stage: str
    """The name of the stage."""
    axes: Axes
    """The values of the axes that lead to this stage."""
    state: str
    """failed, cancelled or damaged."""
    reason: str | None
    """One line: class and cause of the failure, who cancelled the run, or what is damaged."""
    blocked: int
    """The number of stages that wait for it."""

    @property
    def sentence(self) -> str:
        """`failed: pretrain 0a1b2c3d (seed=1): the loss is not finite; 4 stages below it are blocked`."""
        line = f"{self.state}: {self.stage} {self.key[:8]} ({axes_label(self.axes)}): {self.reason}"
        return line + (f"; {counted(self.blocked, *BLOCKED)}" if self.blocked else "")


@dataclass(frozen=True)
class Results:
    """What `retain results --json` and `retain run --json` print."""

    study: str
    """The name of the study."""
    loss_unit: str
    """The unit of the losses, for readers."""
    axes: list[str]
    """The names of the axes, as the study writes them."""
    trials: list[Row]
    """One row per trial: its axes, stage keys, the four losses (nats per token; None if missing) and tokens; `losses` has those
    of every stage on every corpus of the study, and `measures`, in studies with tasks, the metrics as TASK/METRIC."""
    failures: list[Failure]
    """The stages that failed, were cancelled, or are damaged."""
    files: list[str]
    """Paths of the loss table, the figures and the TensorBoard view that were written; none without a finished stage."""
    provisional: bool
    """True while the data is not prepared: the keys will change, and no stage counts as trained."""
    blanks: list[str]
    """Why losses of trained stages are missing, one sentence for each stage and corpus; empty if none is."""
    looks: SavedLooks | None = None
    """The looks of the study, if its seeds are added until its verdicts are decided; None for a fixed sample."""


def collect_results(
    file: StudyFile,
    tree: Tree,
    store: Store,
    states: Mapping[str, StateSummary] | None = None,
    write: Literal["all", "pictures", "nothing"] = "all",
) -> Results:
    """Read the results of a study, and write what shows them into the study's folder.

    states: the states of all stages, if they have been read already; without them, damaged runs are left out and are among the
    failures. write: the loss table that `retain.load` reads, the overview figure and the TensorBoard view (all); the figure,
    and the view if there is one already (pictures); or nothing. A store that may only be read still has results, and so
    has one whose disk is too full for pictures. Raises OSError if it is too full for the loss table.
    """
    damaged: dict[str, State] | None = {} if states is None else None
    if states is None and isinstance(file.study, LinearStudy):  # whose figure needs the recipes in stage.json
        states = _readable_states(tree, store)
    states = states or StatusReader(store).current_states(tree.stages)
    rows = trial_rows(tree, store, states, damaged)
    states = {**states, **(damaged or {})}
    written: list[Path] = []
    draw = draw_theory if isinstance(file.study, LinearStudy) else draw_losses
    try:
        if write != "nothing" and any(state.state == "done" for state in states.values()):
            if write == "all":
                written.append(save_rows(store.root, tree.study, rows))
            written += draw(store.root, tree.study, rows)
            # With ten thousand runs this takes as long as the rest.
            if write == "all" or view_folder(store.root, tree.study).is_dir():
                written.append(link_runs(tree, store, states=states))
    except OSError as error:
        if error.errno in NO_ROOM and write == "pictures":
            place = study_folder(store.root, tree.study)
            notice(f"{place}: pictures cannot be written ({os_reason(error)}), so they may be older than these results")
        elif error.errno not in MAY_NOT:
            raise
    paths, axes = [str(path) for path in written], list(file.labels)
    failed, blanks, looks = failures(tree, states), blank_reasons(rows, store), looks_of(store.root, tree.study)
    return Results(tree.study, file.study.loss_unit, axes, rows, failed, paths, tree.provisional, blanks, looks)


def readable_rows(tree: Tree, store: Store) -> tuple[list[Row], dict[str, State]]:
    """The rows of a study and the states of its stages. Runs that cannot be read are DAMAGED; the rows lack their losses."""
    states = _readable_states(tree, store)
    damaged: dict[str, State] = {}
    rows = trial_rows(tree, store, states, damaged)
    return rows, states | damaged


def _readable_states(tree: Tree, store: Store) -> dict[str, State]:
    """The states of all stages; a run whose stage.json cannot be read is DAMAGED too."""
    states = {}
    for key in tree.stages:
        run = store.run(key)
        states[key] = written_state(run)
        try:
            run.spec()
        except FileNotFoundError:  # not registered
            pass
        except DamageError as error:
            states[key] = damaged_state(error)
    return states


def missing_results(rows: Sequence[Row], failed: Sequence[Failure]) -> str:
    """`4 of 8 trials are missing; 2 stages failed, 1 stage cancelled`; empty if every trial has its result."""
    missing = len(rows) - len(finished_trials(rows))
    counts = Counter(one.state for one in failed)
    why = ", ".join(f"{counted(number, 'stage')} {state}" for state, number in counts.items())
    return missing_trials(missing, len(rows)) + (f"; {why}" if why else "") if missing else ""


def failures(tree: Tree, states: Mapping[str, StateSummary]) -> list[Failure]:
    """The stages that failed, were cancelled or are damaged, each with the number of stages below it that are blocked."""
    blocked = Counter(
        above.key for key in blocked_stages(tree.stages, states) for above in tree.ancestors(key) if above.key != key
    )
    return [
        Failure(key, tree.stages[key].stage, tree.stages[key].axes, state.state, state.reason, blocked[key])
        for key, state in states.items()
        if state.state in ("failed", "cancelled", DAMAGED)
    ]
