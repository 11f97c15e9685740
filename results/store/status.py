"""The status of runs as the store knows it: state, progress, speed, time left."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retain.results.store.index.states import StateReader
from retain.results.store.readiness import blocked_stages, is_blocked_by_a_stage, written_state
from retain.results.store.runs import LOG, Run, Store
from retain.results.store.state import (
    DAMAGED,
    ENDED,
    UNENDED,
    AttemptCost,
    StateSummary,
    attempt_costs,
    damaged_state,
    total_joules,
)
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Axes, Stage, Tree

BLOCKED = "blocked:"
"""The beginning of the reason of a stage whose branch has ended above it."""
REOPENED = "the stage that stopped its branch has been retried since; run or submit its study again"
"""The reason of a skipped run whose branch goes on, for example because another study has retried a stage that both share."""


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
    """The path of the run's log; None before it has one."""
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


class StatusReader:
    """Reads the status of runs of one store, again and again, as `--watch` does: rows that have not changed are kept."""

    def __init__(self, store: Store) -> None:
        self.store, self.reader, self.root = store, StateReader(store, shows_damage=True), str(store.root)
        self._rows: dict[str, tuple[Stage, StateSummary, str | None, RunStatus]] = {}

    def current_states(self, keys: Iterable[str]) -> dict[str, StateSummary]:
        """`current_state` of each run."""
        states = self.reader.states(keys)
        for key, state in states.items():
            if state.state == "running":
                states[key] = current_state(self.store.run(key), state)
        return states

    def of_study(self, tree: Tree, states: Mapping[str, StateSummary] | None = None) -> list[RunStatus]:
        """A row for every stage of a tree, parents first. The reason of a blocked stage names the stage that ended its branch.

        states: the current states of all stages, if they have been read already.
        """
        states = self.current_states(tree.stages) if states is None else states
        states = _with_reopened(tree, states)
        blocked = blocked_stages(tree.stages, states)
        return [self._row(stage, states[key], blocked.get(key)) for key, stage in tree.stages.items()]

    def of_store(self) -> list[RunStatus]:
        """A row for every run of a store; the run whose last attempt began last comes last."""
        states = list(self.current_states(run.key for run in self.store.runs()).items())
        states.sort(key=lambda pair: max((attempt.start for attempt in pair[1].attempts), default=0.0))
        return [run_status(self.store.run(key), state) for key, state in states]

    def _row(self, stage: Stage, state: StateSummary, blocked: str | None) -> RunStatus:
        known = self._rows.get(stage.key)
        if known is not None and known[0] is stage and known[1] is state and known[2] == blocked:
            return known[3]
        row = _row(stage, self.root, state, blocked)
        if state.state in ENDED:  # what is left of an unended run depends on the time, and its log may appear
            self._rows[stage.key] = stage, state, blocked, row
        return row


def _with_reopened(tree: Tree, states: Mapping[str, StateSummary]) -> Mapping[str, StateSummary]:
    """The states, with another reason for skipped runs above which nothing is failed, cancelled or damaged any more."""
    if not any(state.state == "skipped" for state in states.values()):
        return states
    ended: set[str] = set()
    found = dict(states)
    for key, stage in tree.stages.items():
        state = states[key]
        if state.state in ("failed", "cancelled", DAMAGED) or not ended.isdisjoint(stage.needs):
            ended.add(key)
        elif state.state == "skipped" and is_blocked_by_a_stage(state.reason):
            found[key] = replace(state, reason=REOPENED)
    return found


def study_status(tree: Tree, store: Store) -> list[RunStatus]:
    """`StatusReader.of_study`, once."""
    return StatusReader(store).of_study(tree)


def run_status(run: Run, state: StateSummary | None = None) -> RunStatus:
    """The row of one registered run. state: its current state, if it has been read already."""
    try:
        spec = run.spec()
    except DamageError as error:
        return _row(Stage(run.key, "unknown", None, "", 0, {}), str(run.folder.parent), damaged_state(error), None)
    stage = Stage(run.key, stage_name(spec), spec["parent"], "", _total_tokens(spec), spec["axes"])
    return _row(stage, str(run.folder.parent), state or current_state(run), None)


def current_state(run: Run, written: StateSummary | None = None) -> StateSummary:
    """The state of a run; planned if state.json says running but no process holds the lease, DAMAGED if it cannot be read.

    written: what state.json said, if it has just been read.
    """
    state = written or written_state(run)
    if state.state != "running" or run.is_running() or (state := written_state(run)).state != "running":
        return state
    return replace(state, state="planned", reason="its process is gone; run its study again to resume it")


def seconds_left(state: StateSummary) -> float | None:
    """The seconds that a running run still needs at its present speed; None if it is not running or its speed is unknown."""
    progress = state.progress
    if state.state != "running" or not progress.tokens_per_second:
        return None
    since = time.time() - (state.heartbeat or time.time())
    return max(0.0, (progress.total - progress.tokens) / progress.tokens_per_second - since)


def _is_in_tree_order(rows: Sequence[RunStatus]) -> bool:
    """Whether each row is in the branch of the parent that is above it, so that `in_tree_order` would change nothing."""
    keys, above = {row.key for row in rows}, list[str]()
    for row in rows:
        if row.parent not in keys:
            above.clear()
        else:
            while above and above[-1] != row.parent:
                above.pop()
            if not above:
                return False
        above.append(row.key)
    return True


def in_tree_order(rows: Sequence[RunStatus]) -> list[RunStatus]:
    """The rows with every parent directly above its branch. Branches are in the order of their last rows."""
    if _is_in_tree_order(rows):  # as a study's are; finding out takes a tenth of the time
        return list(rows)
    place = {row.key: number for number, row in enumerate(rows)}
    parents = [place.get(row.parent) if row.parent else None for row in rows]
    # From the last row to the first, so that the first row to reach a parent is the last one of its branch.
    end = list(range(len(rows)))
    for number in reversed(end):
        above = parents[number]
        while above is not None and end[above] < number:
            end[above] = number
            above = parents[above]
    below: dict[int | None, list[int]] = {}
    for number in sorted(range(len(rows)), key=end.__getitem__, reverse=True):
        below.setdefault(parents[number], []).append(number)
    found, waiting = list[RunStatus](), below.get(None, [])
    while waiting:
        number = waiting.pop()
        found.append(rows[number])
        waiting += below.get(number, ())
    return found


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
    to_come = [row for row in rows if is_to_come(row)]
    left = {row.key: max(0, row.total - row.tokens) for row in to_come}
    path: dict[str, int] = {}
    for row in in_tree_order(to_come):
        path[row.key] = left[row.key] + path.get(row.parent or "", 0)
    longest = max(path.values(), default=0) / (sum(speeds) / len(speeds))
    return max(sum(left.values()) / sum(speeds), longest)


def rows_by_stage(rows: Sequence[RunStatus]) -> dict[str, list[RunStatus]]:
    """The rows of each stage, in the order of the chain: also of stages that some trials leave out."""
    stages: dict[str, list[RunStatus]] = {}
    ordered = in_tree_order(rows)
    below = dict.fromkeys((row.key for row in ordered), 0)  # the runs on the longest path below a run
    for row in reversed(ordered):
        if row.parent in below:
            below[row.parent] = max(below[row.parent], below[row.key] + 1)
    for row in ordered:
        stages.setdefault(row.stage, []).append(row)
    return dict(sorted(stages.items(), key=lambda stage: -max(below[row.key] for row in stage[1])))


def stage_costs(rows: Sequence[RunStatus]) -> list[StageCost]:
    """What each stage took so far, in the order of the chain."""
    found = []
    for stage, some in rows_by_stage(rows).items():
        costs = [cost for row in some for cost in row.costs]
        device_hours, lost_hours = sum(cost.device_hours for cost in costs), sum(cost.lost_hours for cost in costs)
        attempts = sum(row.attempts for row in some)
        found.append(StageCost(stage, attempts, device_hours, lost_hours, total_joules(costs)))
    return found


def _total_tokens(spec: Mapping[str, Any]) -> int:
    """The tokens to train on; runs registered before that field existed are training stages."""
    recipe = spec["recipe"]
    return int(spec["tokens"] if "tokens" in spec else recipe["sequences"] * recipe["sequence_length"])


def _row(stage: Stage, root: str, state: StateSummary, blocked: str | None) -> RunStatus:
    done, progress, log = state.state == "done", state.progress, f"{root}/{stage.key}/{LOG}"
    last = None if done or not state.counted_attempts else state.counted_attempts[-1]
    tokens = stage.tokens if done else progress.tokens
    return RunStatus(
        key=stage.key,
        stage=stage.stage,
        axes=stage.axes,
        state=state.state,
        attempts=len(state.attempts),
        progress=1.0 if done else min(1.0, tokens / stage.tokens) if stage.tokens else 0.0,
        tokens=progress.tokens,
        total=stage.tokens,
        loss=progress.loss,
        tokens_per_second=progress.tokens_per_second,
        seconds_left=seconds_left(state) if state.state == "running" else None,
        job_id=state.job_ids[-1] if state.job_ids else None,
        reason=state.reason or (blocked and f"{BLOCKED} {blocked}"),
        failure=last.failure if last else None,
        log=log if done or os.access(log, os.F_OK) else None,
        parent=stage.parent,
        costs=tuple(attempt_costs(state)),
    )
