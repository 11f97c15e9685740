"""What each run is doing now, from the store alone."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retain.results.store.runs import Run, State, Store
from retain.sweeps.tree.tree import Axes, Stage, Tree


@dataclass(frozen=True)
class RunStatus:
    """One row of `retain status`."""

    key: str
    stage: str
    axes: Axes
    state: str
    attempts: int
    progress: float
    """Share of its tokens, in [0, 1]."""
    tokens: int
    total: int
    loss: float | None
    """Training loss, nats per token."""
    tokens_per_second: float
    seconds_left: float | None
    """Of a running run."""
    job_id: str | None
    reason: str | None
    """Why it failed, or what it waits for."""
    failure: str | None
    """The class of the failure that ended its last attempt; see `retain.launchers.stage.failures`."""
    log: str | None
    """The path of what it has logged."""


def study_status(tree: Tree, store: Store) -> list[RunStatus]:
    """A row for every stage of a tree, parents first; those below a failed one say so."""
    states = {key: current_state(store.run(key)) for key in tree.stages}
    held_up = held_up_stages(tree.stages, states)
    return [
        _row(stage, store.run(stage.key), states[stage.key], held_up.get(stage.key)) for stage in tree.stages.values()
    ]


def store_status(store: Store) -> list[RunStatus]:
    """A row for every run of a store, the latest attempt last."""
    rows = []
    for run in store.runs():
        spec = run.spec()
        tokens = spec["recipe"]["sequences"] * spec["recipe"]["sequence_length"]
        stage = Stage(run.key, spec["stage"], spec["parent"], "", tokens, spec["axes"])
        state = current_state(run)
        rows.append((max((attempt.start for attempt in state.attempts), default=0.0), _row(stage, run, state, None)))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def current_state(run: Run) -> State:
    """The state of a run, where one whose process is gone without a word is planned again."""
    state = run.state()
    if state.state == "running" and not run.is_running():
        if (again := run.state()).state != "running":
            return again
        reason = "its process is gone; retain run takes it up again"
        return replace(state, state="planned", reason=reason)
    return state


def held_up_stages(stages: Mapping[str, Stage], states: Mapping[str, State]) -> dict[str, str]:
    """For each stage below a failed or cancelled one, the sentence that says which and why."""
    found: dict[str, str] = {}
    for stage in stages.values():
        if stage.parent in found:
            found[stage.key] = found[stage.parent]
        elif stage.parent and (state := states[stage.parent]).state in ("failed", "cancelled"):
            why = f": {state.reason}" if state.reason else ""
            found[stage.key] = f"waits for {stages[stage.parent].stage} {stage.parent[:8]}, which {_verb(state)}{why}"
    return found


def count_states(rows: Iterable[RunStatus]) -> dict[str, int]:
    """How many runs are in each state."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return counts


def seconds_left(state: State) -> float | None:
    """Of a running run, at its present speed."""
    progress = state.progress
    if state.state != "running" or not progress.tokens_per_second:
        return None
    since = time.time() - (state.heartbeat or time.time())
    return max(0.0, (progress.total - progress.tokens) / progress.tokens_per_second - since)


def _row(stage: Stage, run: Run, state: State, held_up: str | None) -> RunStatus:
    done = state.state == "done"
    last = None if done or not state.counted_attempts else state.counted_attempts[-1]
    tokens = stage.tokens if done else state.progress.tokens
    return RunStatus(
        key=stage.key,
        stage=stage.stage,
        axes=stage.axes,
        state=state.state,
        attempts=len(state.attempts),
        progress=min(1.0, tokens / stage.tokens),
        tokens=state.progress.tokens,
        total=stage.tokens,
        loss=state.progress.loss,
        tokens_per_second=state.progress.tokens_per_second,
        seconds_left=seconds_left(state),
        job_id=state.job_ids[-1] if state.job_ids else None,
        reason=state.reason or held_up,
        failure=last.failure if last else None,
        log=str(run.log) if run.log.exists() else None,
    )


def _verb(state: State) -> str:
    return "failed" if state.state == "failed" else "was cancelled"


def as_json(rows: Iterable[RunStatus]) -> list[dict[str, Any]]:
    """The rows as `retain status --json` prints them."""
    return [{name: getattr(row, name) for name in RunStatus.__dataclass_fields__} for row in rows]
