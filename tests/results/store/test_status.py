"""The rows of `retain status` for runs in every state."""

import os
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.results.store import status
from retain.results.store.lease import take_lease
from retain.results.store.readiness import blocked_stages
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, Progress, State, attempt_costs
from retain.results.store.status import (
    RunStatus,
    StatusReader,
    in_tree_order,
    seconds_left,
    stage_costs,
    study_status,
)
from retain.sweeps.tree.tree import Tree
from tests.results.runs import finish, kinds, put_state, registered


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Tree, Store]:
    return registered(tmp_path / "runs")


def test_a_study_has_a_row_for_every_stage_even_before_its_runs_are_registered(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    rows = study_status(tree, Store(tmp_path / "none"))
    assert [row.key for row in rows] == list(tree.stages)
    assert len(rows) == 8
    assert {(row.state, row.progress, row.attempts, row.reason) for row in rows} == {("planned", 0.0, 0, None)}
    assert [row.key for row in study_status(tree, store)] == [row.key for row in rows]


def test_the_progress_of_a_run_whose_tokens_are_unknown_is_not_complete(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    key, stage = next(iter(tree.stages.items()))
    tree = replace(tree, stages={key: replace(stage, tokens=0)})
    store.run(key).begin(os.getpid())
    store.run(key).report(Progress(tokens=1920))
    (row,) = study_status(tree, store)
    assert (row.progress, row.tokens) == (0.0, 1920)


def test_a_running_run_shows_its_progress_speed_and_time_left(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    run = kinds(tree, store, "pretrain")[0]
    lease = take_lease(run.lease)
    assert lease
    assert run.begin(os.getpid())
    state = run.state()
    progress = Progress(tokens=1920, total=7680, loss=2.5, tokens_per_second=64.0)
    put_state(run, replace(state, progress=progress, heartbeat=time.time(), job_ids=("16", "17")))
    row = next(row for row in study_status(tree, store) if row.key == run.key)
    assert (row.state, row.progress, row.tokens, row.total, row.loss) == ("running", 0.25, 1920, 7680, 2.5)
    assert (row.attempts, row.job_id) == (1, "17")
    assert row.seconds_left == pytest.approx(90, abs=5)
    lease.release()
    row = next(row for row in study_status(tree, store) if row.key == run.key)
    assert (row.state, row.seconds_left, row.attempts) == ("planned", None, 1)
    assert "its process is gone" in (row.reason or "")


def test_the_time_left_shrinks_between_two_reports_and_is_never_negative() -> None:
    running = State("running", progress=Progress(0, 1000, None, 10.0), heartbeat=time.time() - 40)
    assert seconds_left(running) == pytest.approx(60, abs=2)
    assert seconds_left(replace(running, heartbeat=1.0)) == 0
    assert seconds_left(replace(running, progress=Progress())) is None
    assert seconds_left(replace(running, state="done")) is None


def test_a_done_run_shows_full_progress_even_if_early_stopping_ended_it(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    run = kinds(tree, store, "posttrain")[0]
    finish(run)
    row = next(row for row in study_status(tree, store) if row.key == run.key)
    assert (row.state, row.progress, row.reason) == ("done", 1.0, None)


@pytest.mark.parametrize(("state", "verb"), [("failed", "failed"), ("cancelled", "was cancelled")])
def test_only_stages_below_a_failed_stage_are_blocked_and_they_name_it(
    state: str, verb: str, planned: tuple[Tree, Store]
) -> None:
    tree, store = planned
    top = kinds(tree, store, "pretrain")[0]
    top.begin(1)
    assert top.fail("diverged") if state == "failed" else top.cancel("diverged", "error")
    rows = {row.key: row for row in study_status(tree, store)}
    assert rows[top.key].reason == "diverged"
    below = [key for key in tree.stages if top.key in {stage.key for stage in tree.ancestors(key)} and key != top.key]
    assert len(below) == 3
    for key, row in rows.items():
        if key in below:
            assert row.reason == f"blocked: pretrain {top.key[:8]} {verb}: diverged"
        elif key != top.key:
            assert row.reason is None
    assert set(blocked_stages(tree.stages, store.states(tree.stages))) == set(below)


def test_a_skipped_run_says_that_its_branch_goes_on_once_another_study_has_retried_what_ended_it(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    top = kinds(tree, store, "pretrain")[0]
    below = [key for key in tree.stages if top.key in {stage.key for stage in tree.ancestors(key)} and key != top.key]
    assert top.cancel("by hand")
    for key in below:
        store.run(key).skip(f"pretrain {top.key[:8]} was cancelled: by hand")
    reasons = {row.key: row.reason for row in study_status(tree, store)}
    assert {reasons[key] for key in below} == {f"pretrain {top.key[:8]} was cancelled: by hand"}
    assert top.retry()
    rows = {row.key: row for row in study_status(tree, store)}
    assert {(rows[key].state, rows[key].reason) for key in below} == {("skipped", status.REOPENED)}
    assert status.REOPENED.endswith("run or submit its study again")


def test_a_skipped_run_does_not_say_that_its_branch_goes_on_while_the_run_above_is_damaged(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    top = kinds(tree, store, "pretrain")[0]
    below = [key for key in tree.stages if top.key in {stage.key for stage in tree.ancestors(key)} and key != top.key]
    for key in below:
        store.run(key).skip(f"pretrain {top.key[:8]} failed")
    assert {row.reason for row in study_status(tree, store) if row.key in below} == {status.REOPENED}
    (top.folder / "state.json").write_text("{")
    assert {row.reason for row in study_status(tree, store) if row.key in below} == {f"pretrain {top.key[:8]} failed"}


def test_the_status_of_a_store_lists_every_run_with_the_latest_attempt_last(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    second, first = kinds(tree, store, "pretrain")
    finish(first)
    finish(second)
    rows = StatusReader(store).of_store()
    assert len(rows) == 8
    assert [row.key for row in rows[-2:]] == [first.key, second.key]
    by_key = {row.key: row for row in study_status(tree, store)}
    assert {row.key: (row.stage, row.state, row.total, row.axes) for row in rows} == {
        key: (row.stage, row.state, row.total, row.axes) for key, row in by_key.items()
    }


def test_a_row_has_the_documented_fields(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    for row in study_status(tree, store):
        assert set(vars(row)) >= {"key", "stage", "state", "attempts", "progress", "job_id", "reason"}


def test_the_cost_of_a_run_is_the_device_time_of_its_attempts_and_what_was_trained_again(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    run = kinds(tree, store, "pretrain")[0]
    killed = Attempt(1000.0, "a", 1, world=4, end=4600.0, tokens=1000, cause="lost")
    fruitless = Attempt(
        5000.0, "a", 1, world=4, tokens_at_start=750, end=5900.0, tokens=750, cause="SIGTERM", joules=40.0
    )
    last = Attempt(6000.0, "b", 2, world=2, tokens_at_start=750, tokens=0)
    put_state(run, State("running", (killed, fruitless, last), heartbeat=9600.0, progress=Progress(joules=2.0)))
    row = next(row for row in study_status(tree, store) if row.key == run.key)
    assert [(cost.device_hours, cost.lost_hours) for cost in row.costs] == [(4.0, 1.0), (1.0, 1.0), (2.0, 0.0)]
    assert [cost.joules for cost in row.costs] == [None, 40.0, 2.0]
    costs = stage_costs(study_status(tree, store))
    assert [cost.joules for cost in costs] == [42.0, None, None]
    assert [(cost.stage, cost.attempts, cost.device_hours, cost.lost_hours) for cost in costs] == [
        ("pretrain", 3, 7.0, 2.0),
        ("posttrain", 0, 0.0, 0.0),
        ("finetune", 0, 0.0, 0.0),
    ]
    # Its checkpoint was damaged, so an older one was resumed from; another had saved more than it had reported.
    damaged, unreported = replace(fruitless, tokens=800), replace(fruitless, tokens=760)
    for attempt, start, lost in ((damaged, 500, 1.0), (unreported, 800, 0.0)):
        first, _ = attempt_costs(State("running", (attempt, replace(last, tokens_at_start=start))))
        assert (first.device_hours, first.lost_hours) == (1.0, lost)


@given(st.permutations(range(9)), st.lists(st.integers(-1, 8), min_size=9, max_size=9), st.booleans())
def test_rows_that_are_in_the_order_of_the_tree_already_stay_as_they_are(
    places: list[int], above: list[int], is_ordered: bool
) -> None:
    def row(number: int) -> RunStatus:
        # -1 is a run that is not among them.
        parent = f"run {above[number]}" if above[number] < number else None
        return RunStatus(f"run {number}", "stage", {}, "done", 1, 1.0, 1, 1, *[None] * 7, parent=parent)  # type: ignore[arg-type]

    rows = [row(number) for number in places]
    rows = in_tree_order(rows) if is_ordered else rows
    with mock.patch.object(status, "_is_in_tree_order", return_value=False):
        searched = in_tree_order(rows)
    assert in_tree_order(rows) == searched
    assert not is_ordered or rows == searched
