"""What a task of a job does with its runs, in a process as SLURM starts one, with SLURM's commands stood in for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.stage.failures import BUG
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.results.store.runs import Run, Store
from tests.launchers.jobs.conftest import Slurm, submit
from tests.studies import SECOND, linear_study

TASK = "import sys; from retain.launchers.jobs.entry import do_task; print('ended:', do_task(*sys.argv[1:]))"
RANK = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
MINUTES = 100 * SECOND


def branch(folder: Path, rates: Sequence[float] = (0.005, 0.01), **fields: Any) -> tuple[Store, list[Run]]:
    """The runs of a registered linear study: a pretraining, a post-training, and a fine-tuning at each rate."""
    grid = {"pretrain.exposure": [0], "finetune.lr": list(rates)}
    opened = prepare_study(str(linear_study(folder / "study", grid=grid, **fields)), (), folder / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    return opened.store, [opened.store.run(key) for key in opened.tree.stages]


def start(store: Store, token: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TASK, str(store.root), token]
    return subprocess.Popen(command, env=os.environ | RANK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def task(store: Store, token: str) -> tuple[int, str]:
    """Run a task to its end: its exit code, and what it printed outside the logs of its runs."""
    process = start(store, token)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


def begun(store: Store, token: str, run: Run) -> subprocess.Popen[str]:
    """A task that trains this run."""
    process = start(store, token)
    deadline = time.monotonic() + 60
    while run.state().progress.tokens == 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def states(runs: Sequence[Run]) -> list[str]:
    return [run.state().state for run in runs]


def test_a_task_does_the_runs_of_its_pack_in_their_order(tmp_path: Path, slurm: Slurm) -> None:
    store, runs = branch(tmp_path)
    code, printed = task(store, submit(store, *runs))
    assert (code, states(runs)) == (0, ["done"] * 4), printed
    begins = [run.state().attempts[0].start for run in runs]
    assert begins == sorted(begins)
    assert {attempt.job_id for run in runs for attempt in run.state().attempts} == {"7"}
    assert slurm.asked("scontrol") == []


def test_a_run_that_fails_ends_neither_its_pack_nor_the_log_of_the_next_run(tmp_path: Path, slurm: Slurm) -> None:
    store, (pretrain, posttrain, bad, good) = branch(tmp_path, (5, 0.01), **{"finetune.time": 3000})
    code, printed = task(store, submit(store, pretrain, posttrain, bad, good))
    assert states([pretrain, posttrain, bad, good]) == ["done", "done", "failed", "done"], printed
    assert code == 0
    assert bad.state().attempts[-1].failure == "diverged"
    assert bad.key not in good.log.read_text()
    assert slurm.calls("requeue") == []
    bad.retry()
    assert task(store, submit(store, bad))[0] == 1


def test_a_task_that_is_told_to_stop_requeues_its_job_for_the_run_that_it_was_doing(
    tmp_path: Path, slurm: Slurm
) -> None:
    store, runs = branch(tmp_path, **{"pretrain.time": MINUTES * 0.01})
    process = begun(store, submit(store, *runs), runs[0])
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert states(runs) == ["queued"] * 4
    assert [attempt.cause for attempt in runs[0].state().attempts] == ["SIGTERM"]
    assert slurm.calls("requeue") == ["scontrol requeue 7"]
    assert not runs[0].is_running()


def test_a_task_whose_job_ends_by_scancel_cancels_what_it_still_had_to_do(tmp_path: Path, slurm: Slurm) -> None:
    store, runs = branch(tmp_path, **{"pretrain.time": MINUTES * 0.01})
    process = begun(store, submit(store, *runs), runs[0])
    slurm.command("scontrol", "echo 'JobId=7 JobState=COMPLETING Reason=None PreemptTime=None Restarts=0'")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert {(run.state().state, run.state().reason) for run in runs} == {("cancelled", "by scancel of job 7")}
    assert slurm.calls("requeue") == []


def test_a_cancelled_run_leaves_its_task_to_the_rest_of_the_pack(tmp_path: Path, slurm: Slurm) -> None:
    store, (short, *_) = branch(tmp_path)
    _, (long, *_) = branch(tmp_path, study="other", **{"pretrain.time": MINUTES * 0.01})
    process = begun(store, submit(store, long, short), long)
    long.cancel("by retain cancel")
    process.send_signal(CANCEL_SIGNAL)
    assert process.wait(60) == 0
    assert states([long, short]) == ["cancelled", "done"]
    assert slurm.calls("requeue") == []


def test_a_task_waits_in_the_queue_for_a_run_that_another_job_does_and_skips_a_branch_that_has_ended(
    tmp_path: Path, slurm: Slurm
) -> None:
    store, (pretrain, posttrain, *_) = branch(tmp_path)
    other = replace(new_submission([pretrain.key]), job_id="8")
    write_submission(store, other)
    pretrain.queue(other.token)
    slurm.command("squeue", f"echo '8|any-{other.token}|PENDING|Resources'")
    token = submit(store, posttrain)
    assert task(store, token)[0] == 0
    assert (posttrain.state().state, posttrain.state().attempts) == ("queued", ())
    assert slurm.calls("requeue") == ["scontrol requeue 7"]
    assert slurm.calls("update") == ["scontrol update jobid=7 starttime=now+60"]
    pretrain.fail("it broke", BUG)
    assert task(store, token)[0] == 0
    assert posttrain.state().state == "skipped"
    assert len(slurm.calls("requeue")) == 1


def test_a_task_leaves_a_run_alone_that_was_submitted_again_to_another_job(tmp_path: Path, slurm: Slurm) -> None:
    store, (pretrain, *_) = branch(tmp_path)
    token = submit(store, pretrain)
    other = submit(store, pretrain)
    assert task(store, token)[0] == 0
    assert pretrain.state().state == "queued"
    assert "the run was submitted again, to another job" in pretrain.log.read_text()
    assert task(store, other)[0] == 0
    assert pretrain.is_done()


@pytest.mark.parametrize("requeues", [True, False])
def test_a_task_whose_job_cannot_be_requeued_says_so_and_leaves_the_run_to_submit(
    requeues: bool, tmp_path: Path, slurm: Slurm
) -> None:
    store, (pretrain, *_) = branch(tmp_path, **{"pretrain.time": MINUTES * 0.01})
    refuses = "[ $1 != requeue ] || { echo 'scontrol: error: Access/permission denied' >&2; exit 1; }"
    slurm.command("scontrol", "true" if requeues else refuses)
    process = begun(store, submit(store, pretrain), pretrain)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == int(not requeues)
    assert pretrain.state().state == "queued"
    assert ("cannot requeue itself" in pretrain.log.read_text()) == (not requeues)
