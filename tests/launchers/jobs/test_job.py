"""What a job decides about its runs, and what the end of its script does, with SLURM's commands stood in for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from retain.launchers.jobs import epilogue
from retain.launchers.jobs.branches import cancel_runs
from retain.launchers.jobs.dead_attempts import explain_deaths
from retain.launchers.jobs.job import Requeue, _cancel_runs, _decision, _requeue, check_needs
from retain.launchers.jobs.status import with_jobs
from retain.launchers.jobs.submissions import Backlog, write_backlog
from retain.launchers.slurm import client
from retain.launchers.slurm.client import live_jobs
from retain.launchers.stage.failures import BUG, DIVERGED, NODE
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import UNENDED
from retain.results.store.status import run_status
from retain.sweeps.base.errors import DamageError
from tests.disks import fill, small_disk_at
from tests.launchers.jobs.conftest import Slurm, submit
from tests.results.runs import finish, kinds, registered

DEATHS = 4
"""Attempts in a row that die with their node, after which a run has failed."""


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda run: finish(run), "done"),
        (lambda run: run.cancel("by a test"), "cancelled"),
        (lambda run: run.fail("it broke", BUG), "failed"),
    ],
)
def test_a_job_does_nothing_about_a_run_that_has_ended(
    end: Callable[[Run], object], state: str, pair: tuple[Store, Run, Run]
) -> None:
    store, parent, run = pair
    parent.fail("it broke", BUG)
    end(run)
    assert check_needs(store, run) == ("done", f"the run is {state}")


@pytest.mark.parametrize(
    "end", [lambda run: run.cancel("why"), lambda run: run.fail("why"), lambda run: run.skip("why")]
)
def test_a_job_skips_a_run_whose_branch_has_ended_above_it(
    end: Callable[[Run], object], pair: tuple[Store, Run, Run]
) -> None:
    store, parent, run = pair
    end(parent)
    decision, why = check_needs(store, run)
    assert decision == "skip"
    assert why.endswith("why")


def test_a_job_trains_a_run_once_the_one_above_is_done_and_waits_only_while_something_trains_that(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, parent, run = pair
    without_job = ("skip", f"pretrain {parent.key[:8]} is planned and has no job; submit the study again")
    assert check_needs(store, run) == without_job
    (store.root / "submissions").mkdir()
    write_backlog(store, Backlog((parent.key,)))
    assert check_needs(store, run) == ("wait", f"pretrain {parent.key[:8]} is planned")
    write_backlog(store, Backlog())
    token = submit(store, parent)
    assert check_needs(store, run)[0] == "skip"  # job 7 is somebody else's: SLURM has given out the id again
    slurm.show("RUNNING", token)
    assert check_needs(store, run) == ("wait", f"pretrain {parent.key[:8]} is queued")
    slurm.show("")
    assert check_needs(store, run)[0] == "skip"
    parent.begin(os.getpid())
    assert check_needs(store, run) == ("wait", f"pretrain {parent.key[:8]} is running")
    finish(parent)
    assert check_needs(store, run) == ("train", "")


def test_the_end_of_a_script_requeues_a_job_whose_attempt_died_and_keeps_it_from_the_node(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    run.begin(os.getpid())
    assert epilogue.main([str(store.root), token]) == 1
    state = run.state()
    assert (state.state, state.attempts[-1].cause, state.attempts[-1].failure) == ("queued", "lost", NODE)
    assert slurm.calls("requeue") == ["scontrol requeue 7"]
    assert slurm.calls("update") == ["scontrol update jobid=7 excnodelist=n1"]


def test_the_end_of_a_script_gives_up_a_run_that_died_too_often_and_goes_on_with_the_rest_of_its_pack(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, other = pair
    token = submit(store, run, other)
    for death in range(1, DEATHS + 1):
        run.begin(os.getpid())
        assert epilogue.main([str(store.root), token]) == 1
        assert run.state().state == ("failed" if death == DEATHS else "queued")
        assert len(slurm.calls("requeue")) == death
    assert other.state().state == "queued"
    other.begin(os.getpid())
    other.fail("it broke", BUG)
    assert epilogue.main([str(store.root), token]) == 0
    assert len(slurm.calls("requeue")) == DEATHS


def test_a_job_without_a_run_left_to_do_is_not_requeued(pair: tuple[Store, Run, Run], slurm: Slurm) -> None:
    store, run, _ = pair
    token = submit(store, run)
    for _ in range(DEATHS):
        run.begin(os.getpid())
        assert epilogue.main([str(store.root), token]) == 1
    assert (run.state().state, len(slurm.calls("requeue"))) == ("failed", DEATHS - 1)


def test_the_end_of_a_script_leaves_a_run_alone_that_lives_or_was_submitted_again(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    run.begin(os.getpid())
    lease = take_lease(run.lease)
    assert lease
    assert epilogue.main([str(store.root), token]) == 0
    lease.release()
    slurm.show("")
    submit(store, run)
    run.begin(os.getpid())
    assert epilogue.main([str(store.root), token]) == 0
    assert (run.state().state, slurm.calls("requeue")) == ("running", [])


@pytest.mark.parametrize(("shown", "code"), [("RUNNING", 1), ("PENDING", 0), ("", 0)])
def test_a_job_that_died_before_its_run_began_is_told_from_one_that_has_requeued_itself(
    shown: str, code: int, pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    slurm.show(shown)
    assert epilogue.main([str(store.root), token]) == code
    assert len(run.state().attempts) == len(slurm.calls("requeue")) == code
    assert run.state().state == "queued"


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_died_on_a_full_disk_waits_in_the_queue_until_there_is_room(
    begun: bool, tmp_path: Path, slurm: Slurm
) -> None:
    with small_disk_at(tmp_path / "disk", 1) as disk:
        tree, store = registered(disk / "runs")
        run = kinds(tree, store, "pretrain")[0]
        token = submit(store, run)
        if begun:
            run.begin(os.getpid())
        filler = fill(disk)
        assert epilogue.main([str(store.root), token]) == 1
        assert run.state().state == ("running" if begun else "queued")
        assert slurm.calls("update") == ["scontrol update jobid=7 starttime=now+600"]
        filler.unlink()
        assert epilogue.main([str(store.root), token]) == 1
        assert [attempt.cause for attempt in run.state().attempts] == ["lost"]
        assert slurm.calls("requeue") == ["scontrol requeue 7"] * 2


def test_a_job_that_cannot_read_a_file_here_and_now_is_tried_again_elsewhere(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, needed, run = pair
    finish(needed)
    token = submit(store, run)
    whole = (needed.folder / "state.json").rename(needed.folder / "whole")
    (needed.folder / "state.json").symlink_to("/proc/self/mem")  # whose first byte is an I/O error
    with pytest.raises(DamageError, match=r"\(Input/output error\); check the file system, and try again"):
        _decision(store, token, run)
    assert epilogue.main([str(store.root), token]) == 1
    assert (run.state().state, run.state().attempts[-1].failure) == ("queued", NODE)
    assert slurm.calls("update") == ["scontrol update jobid=7 excnodelist=n1"]
    whole.replace(needed.folder / "state.json")
    assert _decision(store, token, run) == ("train", "")


def test_the_end_of_a_job_that_died_early_leaves_a_run_to_the_process_that_has_it(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    assert take_lease(run.lease)
    assert epilogue.main([str(store.root), token]) == 0
    assert (run.state().attempts, slurm.calls("requeue")) == ((), [])


def test_a_job_waits_for_a_controller_that_is_away_before_it_requeues_itself(
    pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_AGAIN_S", 0.01)
    slurm.silent("scontrol", 2, "Unexpected message received for job 7", "true")
    _requeue(Requeue(pair[1]))
    assert slurm.calls("requeue") == ["scontrol requeue 7"] * 3
    monkeypatch.setattr(client, "AWAY_S", 0)
    slurm.silent("scontrol", 99, "Unable to contact slurm controller (connect failure)", "true")
    with pytest.raises(client.NoAnswerError):
        _requeue(Requeue(pair[1]))


def test_a_job_does_not_end_while_the_controller_does_not_tell_it_about_a_needed_run(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, parent, run = pair
    submit(store, parent)
    token = submit(store, run)
    slurm.command("squeue", "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1")
    decision, why = _decision(store, token, run)
    assert decision == "wait"
    assert "Socket timed out" in why
    slurm.command("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert _decision(store, token, run)[0] == "skip"


def test_the_end_of_a_job_that_died_early_waits_for_a_controller_that_is_away(
    pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    monkeypatch.setattr(client, "ASK_AGAIN_S", 0.01)
    slurm.silent("squeue", 2, "Unable to contact slurm controller (connect failure)", "echo '7|any|RUNNING|None'")
    assert epilogue.main([str(store.root), token]) == 1
    assert (run.state().state, len(slurm.calls("requeue"))) == ("queued", 1)


def test_the_end_of_a_job_whose_runs_have_ended_asks_slurm_nothing(pair: tuple[Store, Run, Run], slurm: Slurm) -> None:
    store, run, _ = pair
    token = submit(store, run)
    run.begin(os.getpid())
    finish(run)
    assert epilogue.main([str(store.root), token]) == 0
    assert slurm.asked("") == []


def test_setup_lines_that_end_a_job_are_the_cause_of_its_failure(pair: tuple[Store, Run, Run], slurm: Slurm) -> None:
    store, run, _ = pair
    token = submit(store, run)
    assert epilogue.main([str(store.root), token, "5"]) == 1
    assert "ended in its setup lines (execution.slurm.setup) with code 5" in (run.state().reason or "")
    assert run.state().attempts[-1].failure == NODE


def test_a_run_that_ended_by_itself_is_not_tried_again_by_the_end_of_the_script(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    run.begin(os.getpid())
    run.fail("diverged: nan", DIVERGED)
    assert epilogue.main([str(store.root), token]) == 0
    assert (run.state().state, slurm.calls("requeue")) == ("failed", [])


def test_a_requeued_job_waits_for_what_it_must_and_avoids_where_it_failed(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    run = pair[1]
    _requeue(Requeue(run, hold_s=60, avoided=frozenset({"n2"}), after=("5", "6")))
    assert slurm.calls("requeue") == ["scontrol requeue 7"]
    assert [line.rpartition(" ")[2] for line in slurm.calls("update")] == [
        "starttime=now+60",
        "excnodelist=n2",
        "dependency=afterany:5:6",
    ]
    assert run.state().state == "queued"


def test_scancel_cancels_what_the_job_still_had_to_do_and_nothing_that_another_process_has(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, other = pair
    token = submit(store, run, other)
    lease = take_lease(other.lease)
    assert lease
    _cancel_runs(store, token, (run.key, other.key))
    assert (run.state().state, run.state().reason) == ("cancelled", "by scancel of job 7")
    assert other.state().state in UNENDED
    lease.release()
    submit(store, other)
    _cancel_runs(store, token, (other.key,))
    assert other.state().state in UNENDED


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("PENDING|JobHeldUser", "JobHeldUser: it is held: scontrol release 7 lets it start"),
        ("PENDING|JobHeldAdmin", "JobHeldAdmin: an administrator holds it: ask them to release job 7"),
        ("PENDING|job requeued in held state", "state: it is held: scontrol release 7 lets it start"),
        ("SUSPENDED|None", "SUSPENDED: it continues once SLURM or an administrator resumes it"),
    ],
)
def test_status_says_who_can_let_a_job_go_on_that_an_operator_has_stopped(
    shown: str, said: str, pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, _ = pair
    token = submit(store, run)
    slurm.command("squeue", f"echo '7|any-{token}|{shown}'")
    (row,) = with_jobs([run_status(run)], store, live_jobs(everyone=True))
    assert (row.state, str(row.reason).endswith(said)) == ("queued", True), row.reason


@pytest.mark.parametrize(("accounted", "cancelled"), [("CANCELLED by 1000", True), ("CANCELLED", False)])
def test_a_dead_run_is_cancelled_if_somebody_has_cancelled_its_job_and_not_if_slurm_has_lost_it(
    accounted: str, cancelled: bool, pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, _ = pair
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    run.begin(os.getpid())
    monkeypatch.delenv("SLURM_JOB_ID")
    slurm.command("sacct", f"echo '8|{accounted}'")
    assert explain_deaths(store, [run])[run.key].cancelled is cancelled


def test_a_job_is_cancelled_with_its_run_if_another_run_of_its_pack_is_damaged(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, other = pair
    slurm.show("RUNNING", submit(store, run, other))
    (other.folder / "state.json").write_text("{")
    slurm.command("scancel", "true")
    with pytest.raises(DamageError, match=r"state\.json .* \(cancelled: 1 run\)"):
        cancel_runs(store, [run.key, other.key])
    assert run.state().state == "cancelled"
    assert slurm.asked("scancel") == ["scancel --quiet 7"]
