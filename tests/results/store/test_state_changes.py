"""Which change of a run's state may follow which, and who makes them."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.results.store.runs import Run
from retain.results.store.state import CHANGES, STATES, Attempt, State
from tests.results.runs import put_state

ROOT = Path(__file__).parents[3]
METHODS: dict[str, Callable[[Run], object]] = {
    "queue": lambda run: run.queue("a-token"),
    "unqueue": lambda run: run.unqueue(),
    "begin": lambda run: run.begin(pid=1),
    "stop": lambda run: run.stop("SIGTERM"),
    "requeue": lambda run: run.queue(),
    "fail": lambda run: run.fail("it broke", "bug"),
    "cancel": lambda run: run.cancel("by hand"),
    "skip": lambda run: run.skip("its parent failed"),
    "finish": lambda run: run.finish(None, {"losses.json": {"splits": {}}}),
    "retry": lambda run: run.retry(),
    "reopen": lambda run: run.retry(reopen=True),
}
"""The method of a run that makes each change."""
TABLE = {
    "planned": {"queue", "begin", "requeue", "fail", "cancel", "skip"},
    "queued": {"queue", "unqueue", "begin", "requeue", "fail", "cancel", "skip"},
    "running": {"queue", "begin", "stop", "requeue", "fail", "cancel", "finish"},
    "done": {"reopen"},
    "failed": {"begin", "requeue", "retry", "reopen"},
    "cancelled": {"finish", "retry", "reopen"},
    "skipped": {"begin", "skip", "retry", "reopen"},
}
"""The changes that each state allows."""


def run_in(folder: Path, state: str) -> Run:
    run = Run(folder / "a-run")
    run.folder.mkdir(exist_ok=True)
    put_state(run, State(state=state, reason="before"))
    return run


def test_the_table_is_the_one_that_users_of_the_store_rely_on() -> None:
    allowed = {state: {change for change, (_, follows) in CHANGES.items() if state in follows} for state in STATES}
    assert allowed == TABLE


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_applied_where_the_table_allows_it_and_otherwise_nothing_is_written(
    change: str, state: str, tmp_path: Path
) -> None:
    run = run_in(tmp_path, state)
    before = (run.folder / "state.json").read_bytes()
    applied = METHODS[change](run)
    if change in TABLE[state]:
        assert run.state().state == CHANGES[change][0]
        assert applied in (True, None)
    else:
        assert (run.folder / "state.json").read_bytes() == before
        assert applied in (False, None)


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.sampled_from(sorted(METHODS)), max_size=12))
def test_after_any_sequence_of_changes_the_state_is_one_of_the_table_and_attempts_are_only_added(
    changes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_in(tmp_path_factory.mktemp("any"), "planned")
    for change in changes:
        old = run.state()
        METHODS[change](run)
        new = run.state()
        assert new.state == (CHANGES[change][0] if change in TABLE[old.state] else old.state)
        assert [one.start for one in new.attempts[: len(old.attempts)]] == [one.start for one in old.attempts]
        assert sum(one.end is None for one in new.attempts) <= 1


def test_an_attempt_is_closed_even_if_the_run_was_cancelled_meanwhile(tmp_path: Path) -> None:
    run = run_in(tmp_path, "planned")
    run.begin(pid=1)
    run.cancel("by hand")
    assert not run.stop("SIGTERM")
    state = run.state()
    assert (state.state, state.attempts[-1].cause) == ("cancelled", "SIGTERM")
    assert state.attempts[-1].end is not None


def test_a_done_run_is_never_planned_again_by_retry(tmp_path: Path) -> None:
    run = run_in(tmp_path, "planned")
    run.begin(pid=1)
    run.finish(None, {"losses.json": {"splits": {}}})
    assert not run.retry()
    assert run.is_done()


def test_retry_forgives_the_attempts_before_it(tmp_path: Path) -> None:
    run = run_in(tmp_path, "planned")
    put_state(run, replace(run.state(), state="failed", attempts=(Attempt(0.0, "here", 1, end=1.0),)))
    assert run.retry()
    assert run.state().counted_attempts == ()
    assert len(run.state().attempts) == 1


def test_no_other_module_writes_the_state_of_a_run() -> None:
    """All others call a method of Run. A checkpoint has a state.json too, of its own."""
    pattern = r"state\.json\"|\._write\(|\._change\("
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-lE", pattern, "--", "sweeps", "launchers", "results", "retain"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.split()) == {"results/store/runs.py", "launchers/stage/training/checkpoints.py"}
