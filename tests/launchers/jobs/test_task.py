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

from retain.launchers.jobs.branches import cancel_runs
from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.search.derived_studies import open_search, write_points
from retain.launchers.search.request import SearchRequest, register_search
from retain.launchers.stage.failures import BUG
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import MissingResourceError
from tests.disks import fill, read_only_at, small_disk_at
from tests.launchers.jobs.conftest import Slurm, submit
from tests.retain import retain_here
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


@pytest.mark.parametrize("branch_ended", [False, True])
def test_a_task_on_a_full_disk_sends_its_job_back_to_the_queue_until_there_is_room(
    branch_ended: bool, tmp_path: Path, slurm: Slurm
) -> None:
    with small_disk_at(tmp_path / "disk", 64) as disk:
        store, (pretrain, *below) = branch(disk)
        runs = [pretrain, *below]
        if branch_ended:
            pretrain.fail("it broke", BUG)
            runs = below
        token = submit(store, *runs)
        filler = fill(disk)
        assert task(store, token)[0] == 1
        assert states(runs) == ["queued"] * len(runs)
        assert slurm.calls("requeue") == ["scontrol requeue 7"]
        assert slurm.calls("update") == ["scontrol update jobid=7 starttime=now+600"]
        filler.unlink()
        assert task(store, token)[0] == 0
        assert states(runs) == ["skipped" if branch_ended else "done"] * len(runs)


def test_cancel_ends_the_job_also_where_a_store_has_become_read_only(tmp_path: Path, slurm: Slurm) -> None:
    store, runs = branch(tmp_path)
    slurm.show("RUNNING", submit(store, *runs))
    slurm.command("scancel", "true")
    said = "Read-only file system: 4 of 4 runs cannot be marked .*; ask its owner for access, .*, then cancel again"
    with (
        read_only_at(tmp_path / "disk", store.root) as root,
        pytest.raises(MissingResourceError, match=said),
    ):
        cancel_runs(Store(root), [run.key for run in runs])
    assert slurm.asked("scancel") == ["scancel --quiet 7"]


def test_cancel_on_a_full_disk_ends_the_jobs_of_a_search_of_its_stages_and_of_the_study(
    tmp_path: Path, slurm: Slurm
) -> None:
    rates = {"axes": {"finetune.lr": {"uniform": [0.02, 0.04]}}, "trials": 2, "seeds": [0]}
    with small_disk_at(tmp_path / "disk", 1) as disk:
        store, runs = branch(disk, search=rates)
        study = disk / "study" / "linear.yaml"
        searched = open_search(str(study), (), store.root, lambda *_: None)
        search = register_search(searched, SearchRequest("slurm", None, "h100"))
        points = searched.corners()
        write_points(searched, points)
        file, tree = searched.tree(points)
        register(tree, file, searched.facts, store)
        stages = [store.run(key) for key in tree.stages if store.run(key) not in runs]
        listed = [
            f"echo '{job}|any-{submit(store, *own, job=job)}|RUNNING|None'"
            for job, own in (("7", runs), ("8", [search]), ("9", stages))
        ]
        slurm.command("squeue", "; ".join(listed))
        slurm.command("scancel", "true")
        fill(disk)
        said = retain_here("cancel", study, "--store", store.root, code=3).stderr
        assert "No space left on device: 4 of 4 runs cannot be marked as cancelled" in said
        assert sorted(slurm.asked("scancel")) == [f"scancel --quiet {job}" for job in (7, 8, 9)]


def test_a_task_whose_store_cannot_be_written_ends_with_the_error(tmp_path: Path, slurm: Slurm) -> None:
    store, runs = branch(tmp_path)
    token = submit(store, *runs)
    with read_only_at(tmp_path / "disk", store.root) as root:
        code, printed = task(Store(root), token)
    assert (code, states(runs), slurm.calls("requeue")) == (1, ["queued"] * 4, [])
    assert printed.count("cannot be written (Read-only file system); ask its owner for access") == 1


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
