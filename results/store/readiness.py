"""Whether a run may begin: all runs that it needs are done, some are not yet, or one has ended in another way."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from retain.results.store.runs import Run, Store
from retain.results.store.state import STOPPED, State, StateSummary, damaged_state
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.key_diff import stage_name

if TYPE_CHECKING:
    from retain.sweeps.tree.tree import Stage  # the import takes a fifth of a second, in every job

VERBS = {"failed": "failed", "cancelled": "was cancelled"}
"""What a sentence says of a stage in the states that end the branch below it."""


def written_state(run: Run) -> State:
    """The state that state.json says; DAMAGED if it cannot be read."""
    try:
        return run.state()
    except DamageError as error:
        return damaged_state(error)


def blocked_by(store: Store, run: Run) -> str | None:
    """Which needed run ended the branch of this run, and why, in one sentence; None if the run may still begin."""
    for key in run.needs():
        needed = store.run(key)
        state = needed.state()
        if state.state in STOPPED:
            return _sentence(stage_name(needed.spec()), key, state)
    return None


def unfinished_needs(store: Store, run: Run) -> list[Run]:
    """The needed runs that are not done yet."""
    return [needed for key in run.needs() if not (needed := store.run(key)).is_done()]


def need_in_words(needed: Run) -> str:
    """How far a needed run is: `pretrain 5b6e8cba is running`. Raises DamageError."""
    try:
        return f"{stage_name(needed.spec())} {needed.key[:8]} is {needed.state().state}"
    except FileNotFoundError:
        return f"run {needed.key[:8]} is not in the store any more"


def blocked_stages(stages: Mapping[str, "Stage"], states: Mapping[str, StateSummary]) -> dict[str, str]:
    """For each stage of a tree (parents first) whose branch has ended above it, the sentence of `blocked_by`."""
    found: dict[str, str] = {}
    for stage in stages.values():
        for need in stage.needs:
            if need in found:
                found.setdefault(stage.key, found[need])
            elif (state := states[need]).state in STOPPED:
                found.setdefault(stage.key, _sentence(stages[need].stage, need, state))
    return found


def is_ready(stage: "Stage", states: Mapping[str, StateSummary]) -> bool:
    """Whether the runs that a stage of a tree needs are done."""
    return all(states[need].state == "done" for need in stage.needs)


def is_blocked_by_a_stage(reason: str | None) -> bool:
    """Whether the reason of a skipped run is a sentence of `blocked_by`, and not that the run has lost its job."""
    return any(f" {verb}" in (reason or "") for verb in VERBS.values())


def _sentence(stage: str, key: str, state: StateSummary) -> str:
    if state.state == "skipped":
        return state.reason or f"{stage} {key[:8]} was skipped"
    return f"{stage} {key[:8]} {VERBS[state.state]}{f': {state.reason}' if state.reason else ''}"
