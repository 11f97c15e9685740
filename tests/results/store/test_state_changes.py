"""Which change of a run's state may follow which, and that only Run writes the state."""

import json
import math
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.results.store.runs import Run
from retain.results.store.state import CHANGES, STATES, Attempt, Progress, State
from retain.sweeps.base.processes import locks
from retain.sweeps.base.processes.names import process_name
from tests.results.runs import put_state
from tests.results.store.processes import next_line, start_python

ROOT = Path(__file__).parents[3]
METHODS: dict[str, Callable[[Run], object]] = {
    "queue": lambda run: run.queue("a-token"),
    "unqueue": lambda run: run.unqueue(),
    "begin": lambda run: run.begin(pid=1),
    "stop": lambda run: run.stop("SIGTERM"),
    "requeue": lambda run: run.queue(),
    "fail": lambda run: run.fail("it broke", "bug"),
    "cancel": lambda run: run.cancel("by retain cancel"),
    "skip": lambda run: run.skip("its parent failed"),
    "finish": lambda run: run.finish(None, {"losses.json": {"splits": {}}}),
    "retry": lambda run: run.retry(),
    "reopen": lambda run: run.retry(reopen=True),
}
"""The method of Run that makes each change."""
TABLE = {
    "planned": {"queue", "begin", "requeue", "fail", "cancel", "skip", "finish"},
    "queued": {"queue", "unqueue", "begin", "requeue", "fail", "cancel", "skip", "finish"},
    "running": {"queue", "begin", "stop", "requeue", "fail", "cancel", "finish"},
    "done": {"reopen"},
    "failed": {"begin", "requeue", "retry", "reopen"},
    "cancelled": {"finish", "retry", "reopen"},
    "skipped": {"begin", "skip", "retry", "reopen"},
}
"""The changes that each state allows."""


def run_with_state(folder: Path, state: str) -> Run:
    run = Run(folder / "a-run")
    run.folder.mkdir(parents=True, exist_ok=True)
    put_state(run, State(state=state, reason="before"))
    return run


def test_the_table_of_state_changes_is_the_documented_one() -> None:
    allowed = {state: {change for change, (_, follows) in CHANGES.items() if state in follows} for state in STATES}
    assert allowed == TABLE


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_the_table_forbids_writes_nothing(change: str, state: str, tmp_path: Path) -> None:
    run = run_with_state(tmp_path, state)
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
def test_any_sequence_of_changes_follows_the_table_and_never_drops_an_attempt(
    changes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_with_state(tmp_path_factory.mktemp("any"), "planned")
    for change in changes:
        old = run.state()
        METHODS[change](run)
        new = run.state()
        assert new.state == (CHANGES[change][0] if change in TABLE[old.state] else old.state)
        assert [one.start for one in new.attempts[: len(old.attempts)]] == [one.start for one in old.attempts]
        assert sum(one.end is None for one in new.attempts) <= 1


def test_the_attempt_of_a_run_that_was_cancelled_while_running_is_closed_when_it_stops(tmp_path: Path) -> None:
    run = run_with_state(tmp_path, "planned")
    run.begin(pid=1)
    run.cancel("by retain cancel")
    assert not run.stop("SIGTERM")
    state = run.state()
    assert (state.state, state.attempts[-1].cause) == ("cancelled", "SIGTERM")
    assert state.attempts[-1].end is not None


@pytest.mark.parametrize("state", STATES)
def test_only_the_weights_of_a_done_run_are_recorded_as_freed(state: str, tmp_path: Path) -> None:
    run = run_with_state(tmp_path, state)
    assert run.free_weights(lambda name: True) == (state == "done")
    assert run.state().weights_freed == (state == "done")


def test_retry_never_plans_a_done_run_again(tmp_path: Path) -> None:
    run = run_with_state(tmp_path, "planned")
    run.begin(pid=1)
    run.finish(None, {"losses.json": {"splits": {}}})
    assert not run.retry()
    assert run.is_done()


def test_attempts_and_jobs_before_a_retry_no_longer_count_for_the_run(tmp_path: Path) -> None:
    run = run_with_state(tmp_path, "planned")
    run.queue("a-token")
    put_state(run, replace(run.state(), state="failed", attempts=(Attempt(0.0, "here", 1, end=1.0),)))
    assert run.retry()
    assert run.state().counted_attempts == ()
    assert len(run.state().attempts) == 1
    assert run.state().submission is None


REPORT = """
import sys
from pathlib import Path
from retain.results.store.runs import Run
from retain.results.store.state import Progress
runs = [Run(Path(folder)) for folder in sys.argv[1:]]
print("begins", flush=True)
for step in range(1, 21):
    for run in runs:
        run.report(Progress(step, 20))
"""


def test_a_run_that_is_cancelled_while_it_reports_stays_cancelled_and_no_report_is_lost(tmp_path: Path) -> None:
    runs = [run_with_state(tmp_path / str(number), "running") for number in range(20)]
    reporter = start_python(REPORT, *(run.folder for run in runs))
    assert next_line(reporter) == "begins"
    for run in runs:
        assert run.cancel("by retain cancel")
    assert reporter.wait(60) == 0
    assert [(run.state().state, run.state().progress.tokens) for run in runs] == [("cancelled", 20)] * len(runs)


def test_two_processes_that_change_a_run_at_once_both_change_it(tmp_path: Path) -> None:
    run = run_with_state(tmp_path, "planned")
    run.begin(pid=1)
    before = run.state().heartbeat
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda number: run.note([f"note {number}"]), range(40)))
    note = run.state().attempts[-1].note
    assert note is not None
    assert sorted(note.split("; ")) == sorted(f"note {number}" for number in range(40))
    assert run.state().heartbeat == before


def test_a_lock_that_a_killed_process_has_left_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_state(tmp_path, "planned")
    machine, _, rest = process_name().partition(".")
    (run.folder / ".state.lock").write_text(f"{machine}.{2**22 + 1}.1 0a")
    with monkeypatch.context() as patch:
        patch.setattr(locks, "POLL_S", math.inf)  # no pause is that long, so any fails
        assert run.queue()
    monkeypatch.setattr(locks, "ABANDONED_S", 0.1)
    (run.folder / ".state.lock").write_text(f"another{machine}.{rest} 0a")
    assert run.cancel("by retain cancel")
    assert not (run.folder / ".state.lock").exists()


def test_fields_that_this_version_does_not_know_survive_every_change(tmp_path: Path) -> None:
    run = run_with_state(tmp_path, "planned")
    run.begin(pid=1)
    path = run.folder / "state.json"
    document = json.loads(path.read_text())
    document["later"] = {"of": 1}
    document["attempts"][0]["watts"] = 300
    path.write_text(json.dumps(document))
    run.report(Progress(5, 10))
    run.stop("SIGTERM")
    found = json.loads(path.read_text())
    assert (found["later"], found["attempts"][0]["watts"], found["format"]) == ({"of": 1}, 300, 1)
    assert run.state().attempts[0].cause == "SIGTERM"


def test_only_run_writes_the_state_of_a_run() -> None:
    """All other modules call a method of Run. The checkpoints have another file with the name state.json."""
    pattern = r"state\.json\"|\._write\(|\._change\("
    listed = subprocess.run(
        ["git", "grep", "--untracked", "-lE", pattern, "--", "sweeps", "launchers", "results", "retain"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.split()) == {"results/store/runs.py", "launchers/stage/training/checkpoints.py"}
