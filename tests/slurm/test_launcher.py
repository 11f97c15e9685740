"""`retain submit` on a real SLURM ends in the results of the local launcher, whatever happens on the way."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.jobs.code_snapshot import snapshot_code
from retain.launchers.jobs.submissions import submitted_job
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.launchers.study_status import Status
from retain.results.store.lease import this_process
from retain.results.store.runs import Run, Store
from tests.disks import fill, small_disk_at
from tests.retain import losses, retain, retain_json, train_here, weights
from tests.slurm.chaos import FAULTS, SLOW, Chaos, assert_nothing_repeated, unleash
from tests.slurm.cluster.cluster import Cluster, call, start_controller, stop_controller, wait_until
from tests.slurm.cluster.jobs import queue
from tests.slurm.cluster.processes import processes
from tests.studies import SECOND, linear_study, replaced, tiny_study

pytestmark = pytest.mark.slurm


MINUTE = 60 * 0.01 * SECOND
"""The time of a linear stage that a test ends before it is done."""


def submitted(cluster: Cluster, folder: Path, *options: str, **overrides: Any) -> Chaos:
    """A linear study of two branches that has been submitted with these options."""
    study = linear_study(folder / "study", **{"execution": SLOW["execution"]} | overrides)
    chaos = Chaos(cluster, study, folder / "runs", random.Random(1))
    chaos.retain("submit", chaos.study, *options)
    return chaos


def held(cluster: Cluster, folder: Path, **overrides: Any) -> Chaos:
    """The same, and SLURM starts none of its jobs."""
    return submitted(cluster, folder, "execution.slurm.extra={hold: true}", **overrides)


def running(chaos: Chaos) -> Run | None:
    """A run that has begun to train."""
    runs = Store(chaos.store).runs()
    return next((run for run in runs if run.is_running() and run.state().progress.tokens > 0), None)


@pytest.mark.slow
def test_a_study_survives_faults_of_every_kind_and_ends_in_the_bits_of_a_calm_one(
    slurm: Cluster, tmp_path: Path
) -> None:
    study = tiny_study(tmp_path / "study", **SLOW, grid={"pretrain.exposure": [1], "finetune.lr": [5e-4, 2e-3]})
    chaos = Chaos(slurm, study, tmp_path / "runs", random.Random(1))
    unleash(chaos, ["two submits", *(name for name in FAULTS if name != "two submits")])
    assert len(set(chaos.injected) & set(FAULTS)) >= 8
    train_here(study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")
    assert losses(chaos.store) == losses(tmp_path / "calm")
    assert_nothing_repeated(Store(chaos.store))


def causes(chaos: Chaos) -> set[str | None]:
    """Why attempts have ended so far."""
    return {attempt.cause for run in Store(chaos.store).runs() for attempt in run.state().attempts}


@pytest.mark.slow
def test_preemption_without_a_user_signal_and_a_time_limit_lose_nothing(silent_slurm: Cluster, tmp_path: Path) -> None:
    long = 20 * 0.01 * SECOND  # so that the preemption meets it on a busy machine too
    chaos = submitted(silent_slurm, tmp_path, grid={"pretrain.exposure": [1]}, **{"pretrain.time": long})
    wait_until(lambda: running(chaos) is not None, "training", 60)
    job = chaos.running_job()
    assert job is not None
    # SLURM checks limits every 30 s, and sends its warning 120 s before the end.
    call(silent_slurm, "scontrol", "update", f"jobid={job}", "EndTime=now+60")
    # At once, so that it meets a run that has begun.
    assert FAULTS["preemption"](chaos)
    wait_until(
        lambda: "SIGUSR2" in causes(chaos) or any(run.is_done() for run in Store(chaos.store).runs()), "the warning"
    )
    # A slow machine trains the stage in no such minute, which is the limit of the job from now on.
    with contextlib.suppress(subprocess.CalledProcessError):  # it has ended
        call(silent_slurm, "scontrol", "update", f"jobid={job}", "TimeLimit=30")
    unleash(chaos, [])
    train_here(chaos.study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")
    assert_nothing_repeated(Store(chaos.store))
    assert causes(chaos) & {"SIGTERM", "SIGUSR2", "lost"}


@pytest.mark.slow
def test_four_ranks_on_two_nodes_reach_the_weights_of_four_local_ranks(slurm: Cluster, tmp_path: Path) -> None:
    # One stage is enough: the others take one process each.
    four = {"stages": {"pretrain": {"devices": 4, "slurm": {"nodes": 2}}}, "micro_batch": 2}
    execution = replaced(SLOW["execution"], four)
    study = tiny_study(tmp_path / "study", **SLOW | {"execution": execution, "grid": {"pretrain.exposure": [1]}})
    chaos = Chaos(slurm, study, tmp_path / "runs", random.Random(1))
    unleash(chaos, [])
    train_here(study, tmp_path / "local")
    assert weights(chaos.store) == weights(tmp_path / "local")
    assert [run.state().attempts[-1].world for run in Store(chaos.store).runs()].count(4) == 1


@pytest.mark.slow
def test_a_drill_on_slurm_finds_no_difference(slurm: Cluster, tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", **SLOW, grid={"pretrain.exposure": [1]})
    # This seed kills the pretraining with SIGKILL and the post-training with SIGTERM, both midway.
    where = ["--launcher", "slurm", "--kills", "2", "--seed", "1980", "--store", str(tmp_path / "runs")]
    document = retain_json("drill", study, *where, more=slurm.environment)
    assert document["kills"] == 2
    assert document["differences"] == []
    assert document["attempts"] > document["runs_compared"]


def test_a_cancelled_branch_ends_alone_and_retry_resumes_it(slurm: Cluster, tmp_path: Path) -> None:
    chaos = held(slurm, tmp_path, grid={"pretrain.exposure": [0, 1]})
    doomed = next(run["key"] for run in chaos.status() if run["stage"] == "posttrain")
    assert "2 runs cancelled" in chaos.retain("cancel", doomed).stdout
    call(slurm, "scontrol", "release", *queue(slurm))
    wait_until(lambda: not queue(slurm), "queue empty")
    states = {run["key"]: run["state"] for run in chaos.status()}
    assert sorted(states.values()) == ["cancelled"] * 2 + ["done"] * 4
    chaos.retain("retry", chaos.study)
    unleash(chaos, [])
    train_here(chaos.study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")


def test_a_run_that_is_cancelled_while_it_trains_stays_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    chaos = submitted(slurm, tmp_path, **{"pretrain.time": MINUTE})
    wait_until(lambda: running(chaos) is not None, "training")
    training = running(chaos)
    assert training is not None
    assert "4 runs cancelled" in chaos.retain("cancel", training.key).stdout
    wait_until(lambda: not training.is_running(), "the run to stop")
    assert training.state().state == "cancelled"
    assert training.state().attempts[-1].end is not None
    assert sum(run["state"] == "cancelled" for run in chaos.status()) == 4


def test_scancel_of_a_job_cancels_its_run_and_retry_resumes_the_branch(slurm: Cluster, tmp_path: Path) -> None:
    chaos = submitted(slurm, tmp_path, grid={"pretrain.exposure": [1]}, **{"pretrain.time": MINUTE})
    wait_until(lambda: running(chaos) is not None, "training")
    job = chaos.running_job()
    assert job is not None
    call(slurm, "scancel", job)
    wait_until(lambda: not queue(slurm), "queue empty")
    by_stage = {run["stage"]: run for run in chaos.status()}
    assert by_stage["pretrain"]["state"] == "cancelled"
    assert by_stage["pretrain"]["reason"] == f"by scancel of job {job}"
    assert by_stage["posttrain"]["state"] == by_stage["finetune"]["state"] == "skipped"
    assert "3 stages submitted" in chaos.retain("retry", chaos.study).stdout


def test_a_thousand_stages_are_submitted_with_one_sbatch_a_family(slurm: Cluster, tmp_path: Path) -> None:
    grid = {
        "pretrain.exposure": [number / 10 for number in range(1, 11)],
        "posttrain.lr": [1e-3 + number * 1e-5 for number in range(9)],
        "finetune.lr": [1e-3 + number * 1e-5 for number in range(10)],
    }
    execution = replaced(SLOW["execution"], {"slurm.extra": {"hold": True}})
    study = linear_study(tmp_path / "study", grid=grid, execution=execution)
    more: Mapping[str, str] = slurm.environment
    document = retain_json("submit", study, "--store", tmp_path / "runs", more=more)
    assert len(document["jobs"]) == 1 + 10 + 90
    assert sum(len(job["keys"]) for job in document["jobs"]) == 1000
    again = retain_json("submit", study, "--store", tmp_path / "runs", more=more)
    assert (again["jobs"], again["queued_already"]) == ([], 1000)
    assert len(queue(slurm)) == 1000


def test_jobs_without_a_run_are_named_and_slurm_is_asked_whether_an_owner_is_alive(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    chaos = held(slurm, tmp_path)
    leaf = next(run["key"] for run in chaos.status() if run["stage"] == "finetune")
    job = submitted_job(Store(chaos.store), Store(chaos.store).run(leaf))
    owner = replace(this_process(), host="elsewhere", job_id=job)
    path = tmp_path / "lease.json"
    assert not slurm_liveness().is_dead(path, owner, 0)
    shutil.rmtree(chaos.store / leaf)
    named = retain_json("status", "--store", chaos.store, more=slurm.environment)["orphans"]
    assert named == [{"job_id": job, "key": leaf}]
    assert f"scancel {job}" in chaos.retain("status").stdout
    call(slurm, "scancel", str(job))
    gone = slurm_liveness()
    assert gone.job_has_ended is not None
    assert gone.job_has_ended(owner) is True


def test_status_works_while_the_controller_is_away_and_says_so(slurm: Cluster, tmp_path: Path) -> None:
    chaos = held(slurm, tmp_path, grid={"pretrain.exposure": [1]})
    stop_controller(slurm)
    try:
        alone = retain_json("status", chaos.study, "--store", chaos.store, more=slurm.environment)
    finally:
        start_controller(slurm)
    answered = retain_json("status", chaos.study, "--store", chaos.store, more=slurm.environment)
    assert [run["state"] for run in alone["runs"]] == [run["state"] for run in answered["runs"]] == ["queued"] * 3
    assert "Unable to contact slurm controller" in alone["unanswered"]
    assert answered["unanswered"] is None
    assert not Status(None, [], [], [], alone["unanswered"]).is_over
    assert Status(None, [], [], [], None).is_over
    assert all(run["job_id"] for run in answered["runs"])


def test_without_a_controller_cancel_stops_what_trains_and_the_next_cancel_ends_the_waiting_jobs(
    slurm: Cluster, tmp_path: Path
) -> None:
    """As for the jobs of a colleague, which only their owner may cancel."""
    chaos = held(slurm, tmp_path, grid={"pretrain.exposure": [1]}, **{"pretrain.time": 5 * MINUTE})
    call(slurm, "scontrol", "release", min(queue(slurm)))
    wait_until(lambda: running(chaos) is not None, "training")
    training = running(chaos)
    assert training is not None
    stop_controller(slurm)
    try:
        said = chaos.retain("cancel", chaos.study, code=3).stderr
        wait_until(lambda: not training.is_running(), "the run to stop")
    finally:
        start_controller(slurm)
    assert "3 runs marked as cancelled; cancelling again ends the jobs" in said
    assert (training.state().state, training.state().attempts[-1].cause) == ("cancelled", CANCEL_SIGNAL.name)
    wait_until(lambda: len(queue(slurm)) == 2, "its job to end")
    assert "2 runs cancelled" in chaos.retain("cancel", chaos.study).stdout
    wait_until(lambda: not queue(slurm), "queue empty")
    assert "0 runs cancelled" in chaos.retain("cancel", chaos.study).stdout


def test_cancel_on_a_full_disk_ends_the_jobs_and_says_that_it_could_not_mark_the_runs(
    slurm: Cluster, tmp_path: Path
) -> None:
    with small_disk_at(tmp_path / "disk", 64) as disk:
        chaos = held(slurm, disk, grid={"pretrain.exposure": [1]})
        filler = fill(disk)
        said = chaos.retain("cancel", chaos.study, code=3).stderr
        assert "No space left on device: 3 of 3 runs cannot be marked as cancelled, but their SLURM jobs are" in said
        wait_until(lambda: not queue(slurm), "queue empty")
        filler.unlink()
        assert "3 runs cancelled" in chaos.retain("cancel", chaos.study).stdout
        assert {run.state().state for run in Store(chaos.store).runs()} == {"cancelled"}


def test_jobs_that_start_on_a_full_disk_wait_in_the_queue_until_there_is_room(slurm: Cluster, tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "disk", 64) as disk:
        chaos = held(slurm, disk, grid={"pretrain.exposure": [1]})
        filler = fill(disk)
        for job in queue(slurm):
            call(slurm, "scontrol", "release", job)
        wait_until(
            lambda: "BeginTime" in call(slurm, "squeue", "--noheader", "--format=%r"), "a job that waits for room", 60
        )
        assert {run.state().state for run in Store(chaos.store).runs()} == {"queued"}
        wait_until(
            lambda: not processes(slurm.folder, lambda one: one.name == "slurmstepd"), "the end of the first start"
        )
        filler.unlink()
        # SLURM refuses ("Job credential revoked") what starts again in the second in which it ended.
        call(slurm, "scontrol", "update", f"jobid={min(queue(slurm))}", "starttime=now+2")
        wait_until(lambda: not queue(slurm), "the end of all jobs", 120)
        assert {run.state().state for run in Store(chaos.store).runs()} == {"done"}


def test_queued_jobs_run_the_code_as_it_was_at_submission(slurm: Cluster, tmp_path: Path) -> None:
    chaos = Chaos(slurm, linear_study(tmp_path / "study"), tmp_path / "runs", random.Random(1))
    chaos.store.mkdir()
    code = snapshot_code(chaos.store)
    assert [code] == list((chaos.store / "code").iterdir())
    held = subprocess.run(
        [sys.executable, "-c", "import retain.launchers.jobs.submit as it; print(it.__file__)"],
        env=os.environ | {"PYTHONPATH": str(code)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert held.stdout.strip() == str(code / "retain" / "launchers" / "jobs" / "submit.py")
    script = chaos.retain("submit", chaos.study, "--dry-run").stdout
    assert f"export PYTHONPATH={code}" in script
    assert (code / "commit.json").exists()


ONE: dict[str, list[float]] = {"pretrain.exposure": [0], "finetune.lr": [0.005]}
HELD = {"accelerator": "cpu", "slurm": {"minutes": 5, "cpus": 1, "extra": {"hold": True}}}
KILL = "kill -9 $PPID"
"""The line that kills the process which calls this sbatch."""


def submitted_by(slurm: Cluster, folder: Path, lines: str, code: int) -> tuple[Chaos, str]:
    """A linear study of three stages, submitted once, and what that said on standard error.

    lines: of the shell, in the place of its sbatch; SBATCH stands for the real one. code: how the submission must exit.
    """
    environment = slurm.environment
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\n" + lines.replace("SBATCH", str(shutil.which("sbatch", path=environment["PATH"]))))
    wrapper.chmod(0o755)
    more = environment | {"PATH": f"{wrapper.parent}{os.pathsep}{environment['PATH']}"}
    chaos = Chaos(slurm, linear_study(folder / "study", grid=ONE, execution=HELD), folder / "runs", random.Random(1))
    done = retain("submit", chaos.study, "--store", chaos.store, code=code, more=more)
    return chaos, done.stderr


def test_runs_whose_submitter_was_killed_before_sbatch_are_not_shown_as_queued(slurm: Cluster, tmp_path: Path) -> None:
    chaos, _ = submitted_by(slurm, tmp_path, KILL, code=-9)
    pretrain, *below = chaos.status()
    assert (pretrain["stage"], pretrain["state"], pretrain["job_id"]) == ("pretrain", "planned", None)
    assert pretrain["reason"].endswith("SLURM has no job for it; submit its study again")
    assert {row["state"] for row in below} == {"planned"}
    document = retain_json("submit", chaos.study, "--store", chaos.store, more=slurm.environment)
    assert (document["adopted"], len(document["jobs"])) == ([], 3)
    assert all(row["state"] == "queued" and row["job_id"] for row in chaos.status())


def test_a_job_whose_submitter_was_killed_after_sbatch_is_shown_and_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    chaos, _ = submitted_by(slurm, tmp_path, f'SBATCH "$@"\n{KILL}', code=-9)
    (job,) = queue(slurm)
    pretrain, *_ = chaos.status()
    assert (pretrain["state"], pretrain["job_id"]) == ("queued", job)
    assert pretrain["reason"] == f"JobHeldUser: it is held: scontrol release {job} lets it start"
    chaos.retain("cancel", chaos.study)
    assert queue(slurm) == {}


def test_an_sbatch_that_gets_no_answer_says_what_to_do(slurm: Cluster, tmp_path: Path) -> None:
    away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    _, said = submitted_by(slurm, tmp_path, f"echo '{away}' >&2\nexit 1", code=3)
    assert "Unable to contact slurm controller (connect failure); submit again" in said
    assert "adds only what is missing" in said
