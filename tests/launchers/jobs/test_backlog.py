"""Which job submits the runs that wait for room in the queue, with SLURM's commands stood in for."""

import os
from dataclasses import replace

import pytest

from retain.launchers.jobs import backlog, epilogue, submissions
from retain.launchers.jobs.backlog import submit_backlog
from retain.launchers.jobs.submissions import (
    Backlog,
    new_submission,
    read_backlog,
    submitted_job,
    write_backlog,
    write_submission,
)
from retain.launchers.jobs.submit import submit_runs
from retain.launchers.slurm import client
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from tests.launchers.jobs.conftest import Slurm, submit
from tests.results.runs import finish


@pytest.mark.parametrize("silent", ["scontrol", "sbatch"])
def test_runs_that_wait_for_room_are_submitted_once_a_controller_that_is_away_is_back(
    silent: str, pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, _ = pair
    (store.root / "submissions").mkdir()
    write_backlog(store, Backlog((run.key,)))
    monkeypatch.setattr(client, "ASK_AGAIN_S", 0.01)
    slurm.command("squeue", "true")
    slurm.command("sacctmgr", "exit 1")
    answers = {"scontrol": "echo 'MaxArraySize = 1001'", "sbatch": "echo Submitted batch job 9"}
    for name, answer in answers.items():
        times = 2 if name == silent else 0
        slurm.silent(name, times, "Unable to contact slurm controller (connect failure)", answer)
    submit_backlog(store)
    assert (run.state().state, submitted_job(store, run), read_backlog(store).keys) == ("queued", "9", ())


@pytest.mark.parametrize("carried", [True, False])
def test_a_job_that_ends_waits_for_no_submitter_if_another_job_will_submit_what_waits(
    carried: bool,
    pair: tuple[Store, Run, Run],
    slurm: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Either the other job carries the backlog, or there is no room and it still has a run to do."""
    store, run, other = pair
    elsewhere = replace(new_submission([other.key]), job_id="8")
    write_submission(store, elsewhere)
    if not carried:
        other.queue(elsewhere.token)
    write_backlog(store, Backlog((run.key,), carrier="8" if carried else None))
    slurm.command("squeue", f"echo '7|any|RUNNING|None'; echo '8|any-{elsewhere.token}|RUNNING|None'")
    slurm.command("sacctmgr", "exit 1" if carried else "[ $4 != assoc ] || echo '2|'")
    monkeypatch.setattr(submissions, "SUBMITTER_WAIT_S", 3)
    lease = take_lease(store.root / "submissions" / submissions.LEASE)
    assert lease
    submit_backlog(store)
    assert "not submitted" not in capsys.readouterr().out
    assert read_backlog(store) == Backlog((run.key,), carrier="8" if carried else None)


def test_a_job_that_ends_leaves_what_waits_to_no_job_that_is_completing(
    pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, _ = pair
    (store.root / "submissions").mkdir()
    write_backlog(store, Backlog((run.key,), carrier="8"))
    slurm.command("squeue", "for job in '6|a|RUNNING' '7|b|RUNNING' '8|c|COMPLETING'; do echo \"$job|None\"; done")
    slurm.command("sacctmgr", "[ $4 != assoc ] || echo '2|'")
    monkeypatch.setattr(backlog, "LAST_WAIT_S", 0)
    submit_backlog(store)
    assert read_backlog(store) == Backlog((run.key,), carrier="7")
    assert slurm.calls("requeue") == ["scontrol requeue 7"]


@pytest.mark.parametrize("makes_room", [True, False])
def test_jobs_that_end_together_fill_the_room_that_they_make(
    makes_room: bool, pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job 8 has done its run as well, and is in the queue for a while, or for longer than this job waits."""
    store, run, other = pair
    done = next(run for run in store.runs() if run not in pair)
    done.begin(os.getpid())
    finish(done)
    ending, waiting = (replace(new_submission([one.key]), job_id=job) for one, job in ((done, "8"), (other, "9")))
    write_submission(store, ending)
    write_submission(store, waiting)
    other.queue(waiting.token)
    write_backlog(store, Backlog((run.key,)))
    ends = "7" if makes_room else "999"
    slurm.command(
        "squeue",
        f"echo '7|any|RUNNING|None'; echo '9|any-{waiting.token}|PENDING|Priority'\n"
        f"[ $(grep -c '^squeue ' {slurm.folder}/calls) -gt {ends} ] || echo '8|any-{ending.token}|RUNNING|None'",
    )
    slurm.command("scontrol", "echo 'MaxArraySize = 1001'")
    slurm.command("sacctmgr", "[ $4 != assoc ] || echo '3|'")
    slurm.command("sbatch", "echo Submitted batch job 10")
    monkeypatch.setattr(backlog, "LAST_WAIT_S", 600 if makes_room else 1)
    submit_backlog(store)
    assert submitted_job(store, run) == ("10" if makes_room else None)
    assert read_backlog(store) == Backlog(() if makes_room else (run.key,))
    assert slurm.calls("requeue") == []


@pytest.mark.parametrize("ends", [False, True])
def test_two_jobs_that_end_together_do_not_leave_what_waits_to_each_other(
    ends: bool, pair: tuple[Store, Run, Run], slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This job carries it. The other one has runs to do, or ends, and trusts the carrier, just before this one leaves."""
    store, run, other = pair
    elsewhere = replace(new_submission([other.key]), job_id="8")
    write_submission(store, elsewhere)
    other.queue(elsewhere.token)
    write_backlog(store, Backlog((run.key,), carrier="7"))
    carried = f'grep -q \'"carrier": "7"\' {store.root}/submissions/deferred.json'
    later = f"{carried} && echo RUNNING || echo COMPLETING" if ends else "echo RUNNING"
    slurm.command("squeue", f"echo '7|any|RUNNING|None'; echo \"8|any-{elsewhere.token}|$({later})|None\"")
    slurm.command("sacctmgr", "[ $4 != assoc ] || echo '2|'")
    monkeypatch.setattr(backlog, "LAST_WAIT_S", 0)
    submit_backlog(store)
    assert read_backlog(store) == Backlog((run.key,), carrier="7" if ends else None)
    assert slurm.calls("requeue") == (["scontrol requeue 7"] if ends else [])


def test_nothing_is_left_to_a_job_that_has_submitted_all_that_waited_and_ends(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, other = pair
    (store.root / "submissions").mkdir()
    write_backlog(store, Backlog((run.key,), carrier="7"))
    slurm.command("scontrol", "echo 'MaxArraySize = 1001'")
    slurm.command("sacctmgr", "[ $4 != assoc ] || echo '2|'")
    slurm.command("sbatch", "echo Submitted batch job 9")
    submit_backlog(store)
    assert (submitted_job(store, run), read_backlog(store).keys) == ("9", ())
    slurm.command("squeue", "echo '7|any|RUNNING|None'; echo '8|any|RUNNING|None'")
    later = submit_runs(store, [other.key])
    assert (later.deferred, later.unattended) == ([other.key], True)


def test_a_run_of_a_pack_that_was_retried_without_room_is_submitted_once_the_packs_job_has_done_the_others(
    pair: tuple[Store, Run, Run], slurm: Slurm
) -> None:
    store, run, other = pair
    token = submit(store, run, other)
    run.begin(os.getpid())
    finish(run)
    other.cancel("by a test")
    other.retry()
    write_backlog(store, Backlog((other.key,)))
    slurm.command("scontrol", "echo 'MaxArraySize = 1001'")
    slurm.command("sacctmgr", "exit 1")
    slurm.command("squeue", "true")
    slurm.command("sbatch", "echo Submitted batch job 9")
    assert epilogue.main([str(store.root), token]) == 0
    assert (other.state().state, submitted_job(store, other), read_backlog(store).keys) == ("queued", "9", ())
