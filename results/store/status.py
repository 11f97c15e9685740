"""The status of runs as the store knows it: state, progress, speed, time left."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retain.results.store.readiness import blocked_stages, written_state
from retain.results.store.runs import Run, Store
from retain.results.store.state import UNENDED, AttemptCost, State, attempt_costs, damaged_state, total_joules
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Axes, Stage, Tree

BLOCKED = "blocked:"
"""The beginning of the reason of a stage whose branch has ended above it."""


@dataclass(frozen=True)
class RunStatus:
    """One row of `retain status`."""

    key: str
    """The key of the run."""
    stage: str
    """The name of the stage, such as pretrain, or search; unknown if the run is damaged."""
    axes: Axes
    """The values of the axes that lead to this stage."""
    state: str
    """planned, queued, running, done, failed, cancelled or skipped; damaged if its files cannot be read."""
    attempts: int
    """The number of attempts so far."""
    progress: float
    """Share of the run's tokens, in [0, 1]."""
    tokens: int
    """The tokens trained so far."""
    total: int
    """The tokens to train on; an upper bound."""
    loss: float | None
    """Training loss, nats per token."""
    tokens_per_second: float
    """The latest training speed."""
    seconds_left: float | None
    """Only for a run that is running."""
    job_id: str | None
    """The last SLURM job of the run; None without one."""
    reason: str | None
    """Why the run failed, or what it waits for."""
    failure: str | None
    """The failure class that ended the last attempt; see `launchers.stage.failures`."""
    log: str | None
    """The path of the run's log."""
    parent: str | None = None
    """The key of the parent stage; None for a root."""
    costs: tuple[AttemptCost, ...] = ()
    """What each attempt took."""

    @property
    def device_hours(self) -> float:
        """The hours of all attempts, times their devices."""
        return sum(cost.device_hours for cost in self.costs)

    @property
    def lost_hours(self) -> float:
        """The part of `device_hours` that later attempts trained again."""
        return sum(cost.lost_hours for cost in self.costs)

    @property
    def joules(self) -> float | None:
        """The energy of all attempts whose devices count it; None if none do."""
        return total_joules(self.costs)


@dataclass(frozen=True)
class StageCost:
    """What the runs of one stage took so far."""

    stage: str
    """The name of the stage."""
    attempts: int
    """The number of attempts at its runs."""
    device_hours: float
    """The hours of these attempts, times their devices."""
    lost_hours: float
    """The part of them that later attempts trained again."""
    joules: float | None = None
    """The energy of the attempts whose devices count it; None if none do."""


def study_status(tree: Tree, store: Store, states: Mapping[str, State] | None = None) -> list[RunStatus]:
    """A row for every stage of a tree, parents first. The reason of a blocked stage names the stage that ended its branch.

    states: the current states of all stages, if they have been read already.
    """
    states = {key: current_state(store.run(key)) for key in tree.stages} if states is None else states
    blocked = blocked_stages(tree.stages, states)
    return [
        _row(stage, store.run(stage.key), states[stage.key], blocked.get(stage.key)) for stage in tree.stages.values()
    ]


def store_status(store: Store) -> list[RunStatus]:
    """A row for every run of a store; the run whose last attempt began last comes last."""
    states = [(run, current_state(run)) for run in store.runs()]
    states.sort(key=lambda pair: max((attempt.start for attempt in pair[1].attempts), default=0.0))
    return [run_status(run, state) for run, state in states]


def run_status(run: Run, state: State | None = None) -> RunStatus:
    """The row of one registered run. state: its current state, if it has been read already."""
    try:
        spec = run.spec()
    except DamageError as error:
        return _row(Stage(run.key, "unknown", None, "", 0, {}), run, damaged_state(error), None)
    stage = Stage(run.key, stage_name(spec), spec["parent"], "", _total_tokens(spec), spec["axes"])
    return _row(stage, run, state or current_state(run), None)


def current_state(run: Run) -> State:
    """The state of a run; planned if state.json says running but no process holds the lease, DAMAGED if it cannot be read."""
    state = written_state(run)
    if state.state != "running" or run.is_running() or (state := written_state(run)).state != "running":
        return state
    return replace(state, state="planned", reason="its process is gone; run its study again to resume it")


def seconds_left(state: State) -> float | None:
    """The seconds that a running run still needs at its present speed; None if it is not running or its speed is unknown."""
    progress = state.progress
    if state.state != "running" or not progress.tokens_per_second:
        return None
    since = time.time() - (state.heartbeat or time.time())
    return max(0.0, (progress.total - progress.tokens) / progress.tokens_per_second - since)


def in_tree_order(rows: Sequence[RunStatus]) -> list[RunStatus]:
    """The rows with every parent directly above its branch. Branches are in the order of their last rows."""
    present = {row.key for row in rows}
    below: dict[str | None, list[RunStatus]] = {}
    last = {row.key: number for number, row in enumerate(rows)}
    for row in rows:
        below.setdefault(row.parent if row.parent in present else None, []).append(row)

    def branch(row: RunStatus) -> list[RunStatus]:
        children = [branch(child) for child in below.get(row.key, ())]
        return [row, *(one for child in sorted(children, key=end) for one in child)]

    def end(branch: list[RunStatus]) -> int:
        return max(last[row.key] for row in branch)

    return [row for root in sorted(map(branch, below.get(None, ())), key=end) for row in root]


def is_to_come(row: RunStatus) -> bool:
    """Whether a run has not ended, and nothing above it has ended its branch."""
    return row.state in UNENDED and not (row.reason or "").startswith(BLOCKED)


def study_seconds_left(rows: Sequence[RunStatus]) -> float | None:
    """The seconds that all runs to come still need at the present speed; None while no run reports a speed.

    The runs share the speed of those that are running now. No path of the tree is faster than one run after the other.
    """
    speeds = [row.tokens_per_second for row in rows if row.state == "running" and row.tokens_per_second]
    if not speeds:
        return None
    left = {row.key: max(0, row.total - row.tokens) for row in rows if is_to_come(row)}
    path: dict[str, int] = {}
    for row in in_tree_order(rows):
        if row.key in left:
            path[row.key] = left[row.key] + path.get(row.parent or "", 0)
    longest = max(path.values(), default=0) / (sum(speeds) / len(speeds))
    return max(sum(left.values()) / sum(speeds), longest)


def stage_costs(rows: Sequence[RunStatus]) -> list[StageCost]:
    """What each stage took so far, in the order of the tree."""
    found: dict[str, StageCost] = {}
    for row in in_tree_order(rows):
        sofar = found.get(row.stage, StageCost(row.stage, 0, 0.0, 0.0))
        found[row.stage] = StageCost(
            row.stage,
            sofar.attempts + row.attempts,
            sofar.device_hours + row.device_hours,
            sofar.lost_hours + row.lost_hours,
            total_joules([sofar, row]),
        )
    return list(found.values())


def _total_tokens(spec: Mapping[str, Any]) -> int:
    """The tokens to train on; runs registered before that field existed are training stages."""
    recipe = spec["recipe"]
    return int(spec["tokens"] if "tokens" in spec else recipe["sequences"] * recipe["sequence_length"])


def _row(stage: Stage, run: Run, state: State, blocked: str | None) -> RunStatus:
    done = state.state == "done"
    last = None if done or not state.counted_attempts else state.counted_attempts[-1]
    tokens = stage.tokens if done else state.progress.tokens
    return RunStatus(
        key=stage.key,
        stage=stage.stage,
        axes=stage.axes,
        state=state.state,
        attempts=len(state.attempts),
        progress=1.0 if done else min(1.0, tokens / max(1, stage.tokens)),
        tokens=state.progress.tokens,
        total=stage.tokens,
        loss=state.progress.loss,
        tokens_per_second=state.progress.tokens_per_second,
        seconds_left=seconds_left(state),
        job_id=state.job_ids[-1] if state.job_ids else None,
        reason=state.reason or (blocked and f"{BLOCKED} {blocked}"),
        failure=last.failure if last else None,
        log=str(run.log) if os.path.exists(run.log) else None,
        parent=stage.parent,
        costs=tuple(attempt_costs(state)),
    )
