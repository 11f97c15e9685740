"""The status of runs as the store knows it: state, progress, speed, time left."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from retain.results.store.readiness import blocked_stages
from retain.results.store.runs import Run, Store
from retain.results.store.state import State, damaged_state
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Axes, Stage, Tree


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
    try:
        state = run.state()
        if state.state != "running" or run.is_running() or (state := run.state()).state != "running":
            return state
    except DamageError as error:
        return damaged_state(error)
    return replace(state, state="planned", reason="its process is gone; run its study again to resume it")


def seconds_left(state: State) -> float | None:
    """The seconds that a running run still needs at its present speed; None if it is not running or its speed is unknown."""
    progress = state.progress
    if state.state != "running" or not progress.tokens_per_second:
        return None
    since = time.time() - (state.heartbeat or time.time())
    return max(0.0, (progress.total - progress.tokens) / progress.tokens_per_second - since)


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
        progress=min(1.0, tokens / max(1, stage.tokens)),
        tokens=state.progress.tokens,
        total=stage.tokens,
        loss=state.progress.loss,
        tokens_per_second=state.progress.tokens_per_second,
        seconds_left=seconds_left(state),
        job_id=state.job_ids[-1] if state.job_ids else None,
        reason=state.reason or (blocked and f"blocked: {blocked}"),
        failure=last.failure if last else None,
        log=str(run.log) if os.path.exists(run.log) else None,
    )
