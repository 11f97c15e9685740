"""`retain search --launcher slurm` on a real SLURM: a driver that is a job, and a job for each stage."""

import contextlib
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.cli.app import main
from retain.launchers.jobs.submissions import read_submission, write_submission
from retain.launchers.search.derived_studies import open_search
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.launchers.search.stage_jobs import StageJobs
from retain.results.store.lease import read_owner
from retain.results.store.runs import Store
from retain.results.store.study_files import search_run
from tests.retain import losses, retain, retain_json, stages_of, train_here, weights
from tests.slurm.chaos import SLOW
from tests.slurm.cluster.cluster import Cluster, call, wait_until
from tests.slurm.cluster.jobs import job, queue
from tests.studies import replaced, tiny_study

pytestmark = pytest.mark.slurm
EXECUTION = {"accelerator": "cpu", "save_steps": 5, "slurm": {"minutes": 20, "cpus": 1}}
GRID: dict[str, Any] = {"axes": {"finetune.lr": [5e-4, 2e-3]}, "searcher": "grid"}
PATIENCE_S = 240
HELD = replaced(EXECUTION, {"slurm.extra": {"hold": True}})


def on_slurm(cluster: Cluster, study: Path, store: Path) -> dict[str, Any]:
    """What `retain search` prints once it has handed the search to SLURM."""
    where = ("--launcher", "slurm", "--store", store)
    document: dict[str, Any] = retain_json("search", study, *where, more=cluster.environment)
    return document


def status(cluster: Cluster, study: Path, store: Path) -> dict[str, Any]:
    """What `retain status` says of the search."""
    (search,) = retain_json("status", study, "--store", store, more=cluster.environment)["searches"]
    assert isinstance(search, dict)
    return search


def wait_for_the_end(cluster: Cluster, study: Path, store: Path) -> dict[str, Any]:
    wait_until(lambda: not queue(cluster), "queue empty", PATIENCE_S)
    return status(cluster, study, store)


def release_jobs(cluster: Cluster) -> list[str]:
    """Release the jobs that are held; returns the ids of all jobs."""
    jobs = queue(cluster)
    for job_id in (job_id for job_id, state in jobs.items() if state == "PENDING"):
        with contextlib.suppress(subprocess.CalledProcessError):  # it has ended since
            call(cluster, "scontrol", "release", job_id)
    return list(jobs)


def submitted(store: Path) -> list[str]:
    """The keys of all stages that were ever submitted."""
    places = (store / "submissions").glob("*/intent.json")
    keys = [key for place in places for key in read_submission(Store(store), place.parent.name).keys]
    return [key for key in keys if key != search_run(Store(store), "tiny").key]


@pytest.mark.slow
def test_it_recommends_what_the_grid_says_and_trains_in_the_same_bits(slurm: Cluster, tmp_path: Path) -> None:
    study, store = (
        tiny_study(tmp_path / "study", execution=EXECUTION, search=GRID, grid=GRID["axes"]),
        tmp_path / "runs",
    )
    document = on_slurm(slurm, study, store)
    assert document["submitted"]
    assert document["job_id"] in queue(slurm)
    train_here(study, tmp_path / "here")
    search = wait_for_the_end(slurm, study, store)
    assert (search["state"], search["points"]) == ("done", {"done": 2})
    assert weights(store) == weights(tmp_path / "here")
    assert losses(store) == losses(tmp_path / "here")
    assert sorted(submitted(store)) == sorted(run.key for run in stages_of(store))
    # The search, the stages above, and the two fine-tunings under one parent in one array.
    assert len(list((store / "submissions").glob("*/intent.json"))) == 4
    rows = retain_json("results", study, "--store", tmp_path / "here")["trials"]
    best = min(rows, key=lambda row: float(row["retained_posttraining_loss"]))
    # Started again it has nothing to do, so it says here what it has found.
    (recommended,) = retain_json("search", study, "--store", store, more=slurm.environment)["recommended"]
    assert recommended["values"] == {name: best["axes"][name] for name in GRID["axes"]}


@pytest.mark.slow
def test_a_driver_that_is_preempted_killed_and_requeued_submits_nothing_twice(slurm: Cluster, tmp_path: Path) -> None:
    block = {"axes": {"posttrain.lr": [1e-3, 1e25]}, "searcher": "grid"}
    # Jobs are held, so no stage ends before the driver's last life.
    study = tiny_study(tmp_path / "study", execution=HELD, search=block, **{"posttrain.clip": 1e30})
    store = tmp_path / "runs"
    driver = on_slurm(slurm, study, store)["job_id"]
    release_jobs(slurm)
    run = search_run(Store(store), "tiny")

    def waits_for_stages() -> bool:
        owner = read_owner(run.lease)
        return owner is not None and job(slurm, driver)["JobState"] == "RUNNING" and len(queue(slurm)) > 1

    wait_until(waits_for_stages, "a stage submitted", PATIENCE_S)
    again = on_slurm(slurm, study, store)
    assert (again["submitted"], again["job_id"]) == (False, driver)
    call(slurm, "scancel", "--signal=USR2", driver)
    wait_until(lambda: job(slurm, driver)["Restarts"] == "1", "back in the queue", PATIENCE_S)
    wait_until(waits_for_stages, "the driver again", PATIENCE_S)
    owner = read_owner(run.lease)
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    wait_until(lambda: job(slurm, driver)["Restarts"] == "2", "back in the queue", PATIENCE_S)
    wait_until(lambda: len(run.state().attempts) == 3, "the third attempt", PATIENCE_S)
    call(slurm, "scontrol", "requeue", driver)
    wait_until(lambda: len(run.state().attempts) == 4, "the fourth attempt", PATIENCE_S)
    wait_until(lambda: not release_jobs(slurm), "queue empty", PATIENCE_S)
    search = status(slurm, study, store)
    # What diverges fails its own point and no other.
    assert (search["state"], search["points"]) == ("done", {"done": 1, "failed": 1})
    assert sorted(submitted(store)) == sorted(set(submitted(store)))
    runs = stages_of(store)
    assert sorted(run.spec()["stage"] for run in runs if run.is_done()) == ["finetune", "posttrain", "pretrain"]
    assert all(len(run.state().attempts) == 1 for run in runs if run.key in submitted(store))
    assert [attempt.cause for attempt in run.state().attempts] == ["SIGUSR2", "lost", "SIGTERM", "finished"]


def test_one_search_is_submitted_whatever_happens_to_the_command_and_cancel_takes_it_back(
    slurm: Cluster, tmp_path: Path
) -> None:
    study, store = tiny_study(tmp_path / "study", execution=HELD, search=GRID), tmp_path / "runs"
    first = on_slurm(slurm, study, store)
    (driver,) = queue(slurm)
    assert (first["submitted"], first["job_id"]) == (True, driver)
    assert status(slurm, study, store)["state"] == "queued"
    # As a command leaves it that is killed before sbatch has answered.
    token = search_run(Store(store), "tiny").state().submission
    assert token is not None
    write_submission(Store(store), replace(read_submission(Store(store), token), job_id=None))
    again = on_slurm(slurm, study, store)
    assert (again["submitted"], again["job_id"]) == (False, driver)
    printed = retain("search", study, "--store", store, more=slurm.environment, code=2).stderr
    assert f"SLURM job {driver} is searching this study" in printed
    retain("cancel", study, "--store", store, more=slurm.environment)
    assert queue(slurm) == {}
    assert status(slurm, study, store)["state"] == "cancelled"


@pytest.mark.slow
def test_cancel_ends_driver_and_stages_and_a_new_search_takes_them_up(slurm: Cluster, tmp_path: Path) -> None:
    endless = SLOW | {"pretrain.exposure": 4000, "pretrain.repeat": True}
    study, store = tiny_study(tmp_path / "study", **endless, search=GRID), tmp_path / "runs"

    def is_training() -> bool:
        return any(run.is_running() and run.checkpoint.exists() for run in stages_of(store))

    on_slurm(slurm, study, store)
    wait_until(is_training, "a state", PATIENCE_S)
    printed = retain("cancel", study, "--store", store, more=slurm.environment).stdout
    assert printed.startswith("the search and 1 of its stages cancelled; ")
    wait_until(lambda: not queue(slurm), "queue empty", PATIENCE_S)
    assert status(slurm, study, store)["state"] == "cancelled"
    (begun,) = [run for run in stages_of(store) if run.state().attempts]
    assert begun.state().state == "cancelled"
    assert begun.state().attempts[-1].end is not None
    driver = on_slurm(slurm, study, store)["job_id"]
    wait_until(lambda: begun.is_running(), "training again", PATIENCE_S)
    assert status(slurm, study, store)["points"] == {"running": 2}
    # SLURM's own word ends it too, and its job does not go back to the queue.
    call(slurm, "scancel", driver)
    wait_until(lambda: status(slurm, study, store)["state"] == "cancelled", "the driver gone", PATIENCE_S)
    assert begun.is_running()
    retain("cancel", study, "--store", store, more=slurm.environment)
    wait_until(lambda: not queue(slurm), "queue empty", PATIENCE_S)


def test_a_stage_that_the_search_gives_up_leaves_slurm_and_can_be_trained_later(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    block = {"axes": {"pretrain.exposure": [0, 1]}, "searcher": "grid"}
    study = tiny_study(tmp_path / "study", execution=HELD, search=block)
    searched = open_search(str(study), (), tmp_path / "runs", lambda *_: None)
    searched.folder.mkdir(parents=True, exist_ok=True)
    history, _ = open_history(searched.folder / "search.json", searched.identity())
    search = Search(searched, history, None, parallel=8)
    jobs = StageJobs(search, None)
    jobs.poll()
    first, second = sorted(search.training)
    assert len(queue(slurm)) == 2
    # A driver that is started again finds the jobs of the first.
    again = StageJobs(Search(searched, history, None, parallel=8), None)
    again.poll()
    assert sorted(again.search.training) == [first, second]
    assert len(queue(slurm)) == 2
    history.pruned[first] = "worse than its siblings"
    jobs.poll()
    wait_until(lambda: len(queue(slurm)) == 1, "one job left", PATIENCE_S)
    assert search.store.run(first).state().state == "planned"
    assert search.store.run(second).state().state == "queued"
    assert search.training == {second}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--launcher", "somewhere"],
            "Invalid value for '--launcher': 'somewhere' is not one of 'ray', 'slurm', 'slurm-ray'",
        ),
        (["--launcher", "slurm", "--address", "here:1"], "--address here:1: only valid with --launcher ray"),
        (["--launcher", "slurm", "--nodes", "2"], "--nodes 2: applies only to --launcher slurm-ray"),
        (["--launcher", "slurm", "--budget", "5"], "--budget 5: invalid"),
        (
            ["--launcher", "slurm", "--budget", "5tokens"],
            "--budget 5 tokens: one point takes up to 17.92k tokens; raise it",
        ),
        (["--launcher", "slurm", "finetune.warmup=90"], "finetune.warmup: 90 steps of warm-up"),
        (["--launcher", "slurm", "execution.slurm.warning_seconds=1200"], "no step would be trained; shorten it"),
        (
            ["--launcher", "slurm-ray", "execution.devices=2", "execution.slurm.nodes=2"],
            "a search on Ray trains a stage on one node",
        ),
    ],
)
def test_what_would_fail_in_a_job_is_refused_before_one_is_submitted(
    arguments: list[str],
    sentence: str,
    slurm: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    study = tiny_study(tmp_path / "study", execution=EXECUTION, search=GRID)
    assert main(["search", str(study), *arguments, "--store", str(tmp_path / "runs")]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert queue(slurm) == {}
    assert not (tmp_path / "runs").exists()
