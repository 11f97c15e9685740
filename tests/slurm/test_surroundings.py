"""Submitting from a shell, a site or a study that is in its own way."""

import os
import random
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retain.results.store.runs import Store
from tests.retain import COMMAND, environment, retain, retain_json, train_here, weights
from tests.slurm.chaos import Chaos
from tests.slurm.cluster.cluster import Cluster, Site, call, forget_jobs, wait_until
from tests.slurm.cluster.jobs import queue, submit
from tests.studies import SECOND, linear_study, tiny_study

pytestmark = pytest.mark.slurm
EXECUTION = {"accelerator": "cpu", "slurm": {"minutes": 5, "cpus": 1}}
DEFAULTS = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_PARTITION": "nosuch",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SQUEUE_USERS": "nobody",
    "SQUEUE_STATES": "COMPLETED",
    "SQUEUE_PARTITION": "high",
    "SCANCEL_STATE": "SUSPENDED",
    "SACCT_FORMAT": "JobName",
    "SINFO_PARTITION": "high",
}
"""A user's own defaults for SLURM's commands, each of which would mislead."""


def small(folder: Path, **execution: Any) -> Path:
    return linear_study(folder, grid={"pretrain.exposure": [1]}, execution=EXECUTION, **execution)


def test_a_users_defaults_for_slurms_commands_change_nothing(slurm: Cluster, tmp_path: Path) -> None:
    study, own = small(tmp_path), dict(slurm.environment) | DEFAULTS
    held = (study, "execution.slurm.extra={hold: true}", "--store", tmp_path / "held")
    assert len(retain_json("submit", *held, more=own)["jobs"]) == 3
    assert retain_json("submit", *held, more=own)["queued_already"] == 3
    rows = retain_json("status", *held, more=own)["runs"]
    assert {(row["state"], row["reason"].partition(":")[0]) for row in rows} == {("queued", "JobHeldUser")}
    comments = call(slurm, "squeue", "--noheader", "--format=%k").splitlines()
    assert sorted(comments)[0] == f"retain linear: finetune in {tmp_path / 'held'}"
    retain("cancel", *held, more=own)
    wait_until(lambda: not queue(slurm), "the held jobs to be cancelled")
    retain("submit", study, "--store", tmp_path / "runs", more=own)
    wait_until(lambda: not queue(slurm), "queue empty")
    assert {run.state().state for run in Store(tmp_path / "runs").runs()} == {"done"}


def test_setup_lines_that_end_a_job_are_named_with_its_log(slurm: Cluster, tmp_path: Path) -> None:
    study, store = (
        small(tmp_path, **{"execution.slurm.setup": ["set -e", "echo from the setup lines", "false"]}),
        tmp_path / "r",
    )
    retain("submit", study, "--store", store, more=slurm.environment)
    first = next(run for run in Store(store).runs() if run.spec()["stage"] == "pretrain")
    wait_until(lambda: bool(first.state().reason), "the setup lines to fail")
    # Its job waits some seconds in the queue before it starts again: let it wait until all is read.
    call(slurm, "scontrol", "update", "partitionname=low", "state=down")
    try:
        reason = str(first.state().reason)
        printed = retain("logs", first.key, "--store", store, more=slurm.environment).stdout
        shown = retain_json("status", study, "--store", store, more=slurm.environment)["runs"]
    finally:
        call(slurm, "scontrol", "update", "partitionname=low", "state=up")
    assert "ended in its setup lines (execution.slurm.setup) with code 1; its log is " in reason
    assert "from the setup lines" in Path(reason.rpartition(" ")[2]).read_text()
    assert "from the setup lines" in printed
    rows = {row["stage"]: row for row in shown}
    assert rows["pretrain"]["reason"].endswith(reason)
    assert rows["posttrain"]["reason"] == f"Dependency: pretrain {first.key[:8]} is queued"


def test_setup_lines_with_set_e_run_before_a_stage_that_trains(slurm: Cluster, tmp_path: Path) -> None:
    study = small(tmp_path, **{"execution.slurm.setup": ["set -eu", "export LEVEL=1"]})
    retain("submit", study, "--store", tmp_path / "runs", more=slurm.environment)
    wait_until(lambda: not queue(slurm), "queue empty")
    assert {run.state().state for run in Store(tmp_path / "runs").runs()} == {"done"}


def test_new_resources_for_queued_runs_are_said_to_be_ignored_and_the_commands_named_apply_them(
    slurm: Cluster, tmp_path: Path
) -> None:
    study, store = small(tmp_path), tmp_path / "runs"
    hold = "execution.slurm.extra={hold: true}"
    same, more = (study, hold, "--store", store), (study, hold, "execution.slurm.memory_gb=8", "--store", store)
    retain("submit", *same, more=slurm.environment)
    assert retain_json("submit", *same, more=slurm.environment)["outdated"] == []
    for _ in range(2):
        assert len(retain_json("submit", *more, more=slurm.environment)["outdated"]) == 3
    printed = retain("submit", *more, more=slurm.environment).stdout
    for command in printed.partition("asks for now: ")[2].splitlines()[0].split(" && "):
        own = environment(dict(slurm.environment))
        subprocess.run([*COMMAND, *shlex.split(command)[1:]], env=own, check=True, capture_output=True)
    assert set(call(slurm, "squeue", "--noheader", "--format=%m").split()) == {"8G"}
    assert retain_json("submit", *more, more=slurm.environment)["outdated"] == []


def test_what_a_site_would_refuse_or_never_start_is_said_once_at_submission(slurm: Cluster, tmp_path: Path) -> None:
    study = tiny_study(tmp_path, grid={}, **{f"{stage}.batch": 16 for stage in ("pretrain", "posttrain", "finetune")})
    asked = ("submit", study, "execution.accelerator=gpu", "execution.devices=16", "--store", tmp_path / "runs")
    printed = retain(*asked, code=2, more=slurm.environment).stderr.splitlines()[-1]
    assert "execution.devices: a stage asks for 16 GPUs on a node, and partition low has at most 8" in printed
    asked = ("submit", small(tmp_path), "execution.slurm.partition=nosuch", "--store", tmp_path / "runs")
    (printed,) = retain(*asked, code=3, more=slurm.environment).stderr.splitlines()
    assert printed.count("nosuch") == 1
    assert printed.endswith("set execution.slurm.partition to a partition that sinfo lists")


def test_a_controller_that_forgets_all_jobs_costs_no_run_and_none_of_the_jobs_that_get_the_same_ids(
    start_slurm: Callable[[Site], Cluster], tmp_path: Path
) -> None:
    """As where a cluster is set up again, and the store stays."""
    slurm = start_slurm(Site(nodes=1))
    study = small(tmp_path / "study", **{"pretrain.time": 2 * 0.01 * SECOND})
    chaos = Chaos(slurm, study, tmp_path / "runs", random.Random(1))
    chaos.retain("submit", study)
    pretrain, _, leaf = (Store(chaos.store).run(row["key"]) for row in chaos.status())
    wait_until(lambda: pretrain.is_running() and bool(pretrain.state().attempts), "training")
    os.kill(pretrain.state().attempts[-1].pid, signal.SIGSTOP)  # so that it does not end before it is forgotten
    jobs = sorted(queue(slurm))
    forget_jobs(slurm)
    others = sorted(submit(slurm, "true", "--hold") for _ in jobs)
    assert others == jobs
    rows = chaos.status()
    assert {row["state"] for row in rows} == {"planned"}
    assert all(row["reason"].endswith("submit its study again") for row in rows), rows
    chaos.retain("cancel", leaf.key)
    assert sorted(queue(slurm)) == others
    assert "3 stages submitted" in chaos.retain("retry", study).stdout
    wait_until(lambda: sorted(queue(slurm)) == others, "all but the other jobs to end")
    train_here(study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")


def test_tasks_of_an_array_that_somebody_has_cancelled_are_submitted_again_and_no_others(
    slurm: Cluster, tmp_path: Path
) -> None:
    study = linear_study(tmp_path / "study", grid={"pretrain.exposure": [0, 0.3, 0.6, 1]}, execution=EXECUTION)
    where = (study, "execution.slurm.extra={hold: true}", "--store", tmp_path / "runs")
    array = retain_json("submit", *where, more=slurm.environment)["jobs"][0]
    call(slurm, "scancel", f"{array['job_id']}_[1-2]")
    rows = retain_json("status", *where, more=slurm.environment)["runs"]
    assert {row["key"]: row["reason"] for row in rows if row["state"] == "planned"} == {
        array["keys"][task]: f"its job {array['job_id']}_{task} is gone; submit its study again" for task in (1, 2)
    }
    again = retain_json("submit", *where, more=slurm.environment)
    assert [job["keys"] for job in again["jobs"]] == [array["keys"][1:3]]
    first = [job for job in queue(slurm) if job.partition("_")[0] in (array["job_id"], again["jobs"][0]["job_id"])]
    call(slurm, "scontrol", "release", *first)
    # A job below a cancelled task waits for nothing: it would find its parent at work, and wait for a minute.
    wait_until(lambda: not queue(slurm).keys() & set(first), "the array and the cancelled tasks to be done")
    call(slurm, "scontrol", "release", *queue(slurm))
    wait_until(lambda: not queue(slurm), "queue empty")
    train_here(study, tmp_path / "calm")
    assert weights(tmp_path / "runs") == weights(tmp_path / "calm")
