"""Runs that fail on a real SLURM, the runs below them, and runs that wait until the user may have more jobs."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.jobs.backlog import LAST_WAIT_S
from retain.launchers.slurm.client import accounted_states, exclude_nodes
from retain.results.store.runs import Store
from tests.retain import retain, retain_json, train_here, weights
from tests.slurm.cluster.cluster import Cluster, Site, call, wait_until
from tests.slurm.cluster.jobs import job, queue, submit, wait_for_state
from tests.studies import SECOND, linear_study

pytestmark = pytest.mark.slurm
EXECUTION = {"accelerator": "cpu", "slurm": {"minutes": 5, "cpus": 1}}
RATES = [0.005, 0.01]


def statuses(cluster: Cluster, study: Path, store: Path) -> dict[str, dict[str, Any]]:
    rows = retain_json("status", study, "--store", store, more=cluster.environment)["runs"]
    return {row["key"]: row for row in rows}


def wait_for_the_end(cluster: Cluster, seconds: float = 180) -> None:
    wait_until(lambda: not queue(cluster), "queue empty", seconds)


def test_a_diverging_stage_ends_its_branch_and_no_other(slurm: Cluster, tmp_path: Path) -> None:
    grid = {"pretrain.exposure": [1], "posttrain.lr": [0.01, 5], "finetune.lr": RATES}
    told = tmp_path / "told.txt"
    counts = "$RETAIN_ENDED $RETAIN_DONE $RETAIN_FAILED $RETAIN_SKIPPED $RETAIN_LEFT"
    # With what the user has set, and without what jobs set for themselves.
    on_end = f'echo "{counts} $PYTHONPATH$PYTHONSAFEPATH$HF_HUB_OFFLINE" >> {told}'
    execution = {**EXECUTION, "on_end": on_end}
    study = linear_study(tmp_path / "study", execution=execution, grid=grid, **{"posttrain.time": 500})
    store = tmp_path / "runs"
    retain("submit", study, "--store", store, more={**slurm.environment, "PYTHONPATH": "/home/me/src"})
    wait_for_the_end(slurm)
    *branches, end = told.read_text().splitlines()
    assert end == "study 4 1 2 0 /home/me/src"
    assert len(branches) <= 1
    assert all(line.startswith("branch ") for line in branches)
    rows = statuses(slurm, study, store)
    states = sorted((row["stage"], row["state"]) for row in rows.values())
    assert states == [
        *[("finetune", "done")] * 2,
        *[("finetune", "skipped")] * 2,
        ("posttrain", "done"),
        ("posttrain", "failed"),
        ("pretrain", "done"),
    ]
    (failed,) = [row for row in rows.values() if row["state"] == "failed"]
    assert failed["failure"] == "diverged"
    assert failed["reason"].startswith("diverged: gradient descent diverged after ")
    assert failed["attempts"] == 1
    assert Path(failed["log"]) == store / failed["key"] / "log.txt"
    for row in rows.values():
        if row["state"] == "skipped":
            assert row["reason"].startswith(f"posttrain {failed['key'][:8]} failed: diverged: ")
            assert row["attempts"] == 0
    assert (
        str(store / failed["key"] / "log.txt")
        in retain("status", study, "--store", store, more=slurm.environment).stdout
    )
    again = retain_json("submit", study, "--store", store, more=slurm.environment)
    assert (again["jobs"], len(again["failed"])) == ([], 3)


@pytest.mark.slow
def test_a_job_that_dies_before_it_can_begin_is_tried_again_and_then_named(slurm: Cluster, tmp_path: Path) -> None:
    # What trains the stage imports it; nothing before does.
    broken = tmp_path / "broken" / "safetensors.py"
    broken.parent.mkdir()
    broken.write_text("import os\nos.kill(os.getpid(), 9)\n")
    setup = [f"export PYTHONPATH={broken.parent}"]
    execution = EXECUTION | {"stages": {"finetune": {"pack": 2, "slurm": {"setup": setup}}}}
    grid = {"pretrain.exposure": [1], "finetune.lr": RATES}
    study = linear_study(tmp_path / "study", execution=execution, grid=grid)
    retain("submit", study, "--store", tmp_path / "runs", more=slurm.environment)
    wait_for_the_end(slurm)
    states = [run.state() for run in Store(tmp_path / "runs").runs() if run.spec()["stage"] == "finetune"]
    assert [state.state for state in states] == ["failed", "failed"]
    for state in states:
        assert len(state.attempts) > 1
        assert all(attempt.cause == "lost" for attempt in state.attempts)
        assert "died without reporting" in str(state.reason)


def test_retry_resumes_a_branch_once_what_it_lacked_is_there(slurm: Cluster, tmp_path: Path) -> None:
    study = linear_study(tmp_path / "study", execution=EXECUTION, grid={"finetune.lr": RATES})
    calm, store = tmp_path / "calm", tmp_path / "runs"
    train_here(study, calm)
    # Only pretraining is done, and its weights are not there.
    shutil.copytree(calm, store)
    pre, post, *finetunings = (
        Store(store).run(row["key"]) for row in retain_json("plan", study, "--store", store)["stages"]
    )
    for run in (post, *finetunings):
        shutil.rmtree(run.folder)
    pre.model.rename(tmp_path / "aside")
    retain("submit", study, "--store", store, more=slurm.environment)
    wait_for_the_end(slurm)
    assert [run.state().state for run in (pre, post, *finetunings)] == ["done", "failed", "skipped", "skipped"]
    failure = post.state()
    assert str(failure.reason).startswith(f"damaged store: {pre.folder}: ")
    assert failure.attempts[-1].failure == "damaged store"
    assert {run.state().reason for run in finetunings} == {f"posttrain {post.key[:8]} failed: {failure.reason}"}
    (tmp_path / "aside").rename(pre.model)
    document = json.loads(retain("retry", study, "--store", store, "--json", more=slurm.environment).stdout)
    assert post.key in document["planned_again"]
    assert [job["job_id"] for job in document["submission"]["jobs"]]
    wait_for_the_end(slurm)
    assert {row["state"] for row in statuses(slurm, study, store).values()} == {"done"}
    assert weights(store) == weights(calm)


def test_a_requeued_job_avoids_the_nodes_it_failed_on(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    failing = submit(slurm, "sleep 300")
    wait_for_state(slurm, failing, "RUNNING")
    call(slurm, "scontrol", "requeuehold", failing)
    exclude_nodes(failing, {"n2", "n1"})
    exclude_nodes(failing, {"n3"})
    call(slurm, "scontrol", "release", failing)
    wait_for_state(slurm, failing, "RUNNING")
    assert job(slurm, failing)["NodeList"] == "n4"
    assert job(slurm, failing)["ExcNodeList"] == "n1,n2,n3"


def test_a_job_that_has_failed_on_every_node_of_its_partition_still_starts(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    failing = submit(slurm, "sleep 300")
    wait_for_state(slurm, failing, "RUNNING")
    call(slurm, "scontrol", "requeuehold", failing)
    exclude_nodes(failing, {"n1", "n2", "n3"})
    exclude_nodes(failing, {"n4"})
    assert job(slurm, failing)["ExcNodeList"] == "n4"
    exclude_nodes(failing, slurm.nodes)
    call(slurm, "scontrol", "release", failing)
    wait_for_state(slurm, failing, "RUNNING")


def test_sacct_tells_how_jobs_ended(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in slurm.variables.items():
        monkeypatch.setenv(name, value)
    ended = {submit(slurm, script): state for script, state in (("true", "COMPLETED"), ("exit 3", "FAILED"))}
    waiting = submit(slurm, "true", "--hold")
    wait_until(lambda: accounted_states([*ended, waiting]) == ended, "sacct knows them")
    assert accounted_states([]) == {}


def test_a_study_beyond_the_limit_of_jobs_finishes_unattended(
    start_slurm: Callable[[Site], Cluster], tmp_path: Path
) -> None:
    cluster = start_slurm(Site(nodes=2, max_array_size=3, max_submit=3))
    grid = {"pretrain.exposure": [1], "finetune.lr": [*RATES, 0.02]}
    study, store = linear_study(tmp_path / "study", execution=EXECUTION, grid=grid), tmp_path / "runs"
    document = retain_json("submit", study, "--store", store, more=cluster.environment)
    submitted = sum(len(job["keys"]) for job in document["jobs"])
    assert (submitted, len(document["deferred"])) == (3, 2)

    def finished() -> bool:
        assert len(queue(cluster)) <= 3
        return all(run.is_done() for run in Store(store).runs())

    wait_until(finished, "all stages done", 150)
    wait_for_the_end(cluster)
    assert [len(run.state().attempts) for run in Store(store).runs()] == [1] * 5
    assert all(len(run.state().job_ids) == 1 for run in Store(store).runs())
    assert retain_json("submit", study, "--store", store, more=cluster.environment)["done_already"] == 5


@pytest.mark.slow
def test_a_study_beyond_the_clusters_limit_of_jobs_finishes_unattended(
    start_slurm: Callable[[Site], Cluster], tmp_path: Path
) -> None:
    cluster = start_slurm(Site(nodes=2, accounting=False, max_jobs=4, forget_after=30))
    grid = {"pretrain.exposure": [1], "finetune.lr": [*RATES, 0.02]}
    study, store = linear_study(tmp_path / "study", execution=EXECUTION, grid=grid), tmp_path / "runs"
    began = time.monotonic()
    said = retain("submit", study, "--store", store, more=cluster.environment).stdout
    assert time.monotonic() - began < 60
    assert "beyond your limit of jobs: jobs submit what waits when they end" in said
    wait_until(lambda: all(run.is_done() for run in Store(store).runs()), "all stages done", 400)
    assert [len(run.state().attempts) for run in Store(store).runs()] == [1] * 5


@pytest.mark.slow
def test_the_end_of_a_study_is_told_before_its_last_job_waits_for_room(
    start_slurm: Callable[[Site], Cluster], tmp_path: Path
) -> None:
    cluster, store, told = start_slurm(Site(nodes=2, max_submit=3)), tmp_path / "runs", tmp_path / "told.txt"
    execution = {**EXECUTION, "on_end": f"echo told > {told}"}
    study = linear_study(tmp_path / "study", execution=execution, grid={}, **{"finetune.time": 0.3 * SECOND})
    retain("submit", study, "--store", store, more=cluster.environment)
    wait_until(lambda: sum(run.is_done() for run in Store(store).runs()) == 2, "two stages done", 90)
    wait_until(lambda: len(queue(cluster)) == 1, "the last stage is alone")
    for _ in range(2):
        submit(cluster, "true", "--hold")
    other = linear_study(tmp_path / "other", execution=EXECUTION, grid={}, study="other", seed=7)
    assert retain_json("submit", other, "--store", store, more=cluster.environment)["jobs"] == []
    wait_until(lambda: sum(run.is_done() for run in Store(store).runs()) == 3, "the study is done", 120)
    done_at = time.monotonic()
    wait_until(told.exists, "the end is told", 60)
    assert time.monotonic() - done_at < LAST_WAIT_S


def test_a_job_tells_scancel_from_requeue_and_from_a_preemption_that_cancels(slurm: Cluster, tmp_path: Path) -> None:
    ask = "from retain.launchers.slurm import client; print(client.own_job_is_cancelled()); print(client.is_stopped_early())"
    script = f"trap '{sys.executable} -c \"{ask}\"; exit' TERM; echo listens; while :; do sleep 0.2; done"
    deeds = {"scancel": ["scancel"], "requeue": ["scontrol", "requeue"], "preempted": []}
    jobs = {deed: submit(slurm, script, "--partition=low", output=tmp_path / deed) for deed in deeds}
    wait_until(
        lambda: all((tmp_path / deed).exists() and (tmp_path / deed).read_text() for deed in deeds), "all listen"
    )
    for deed, command in deeds.items():
        if command:
            call(slurm, *command, jobs[deed])
    try:
        call(slurm, "scontrol", "update", "partitionname=low", "preemptmode=cancel")
        submit(slurm, "sleep 1", "--partition=high", f"--nodes={len(slurm.nodes)}", "--exclusive")
        wait_until(lambda: all(len(said(tmp_path / deed)) == 2 for deed in deeds), "three pairs of answers")
    finally:
        call(slurm, "scontrol", "update", "partitionname=low", "preemptmode=requeue")
    assert {deed: said(tmp_path / deed) for deed in deeds} == {
        "scancel": ["True", "True"],
        "requeue": ["False", "True"],
        "preempted": ["False", "True"],
    }


@pytest.mark.slow
def test_a_job_knows_when_half_of_its_walltime_has_passed(slurm: Cluster, tmp_path: Path) -> None:
    ask = f"{sys.executable} -c 'from retain.launchers.slurm import client; print(client.is_stopped_early())'"
    submit(slurm, f"{ask}; sleep 35; {ask}", "--time=1", output=tmp_path / "asked")
    wait_until(lambda: len(said(tmp_path / "asked")) == 2, "two answers", 90)
    assert said(tmp_path / "asked") == ["True", "False"]


def said(path: Path) -> list[str]:
    """The answers in what a job has printed."""
    return re.findall(r"^(?:True|False)$", path.read_text(), re.MULTILINE) if path.exists() else []


@pytest.mark.parametrize("cause", ["its node goes down", "an operator requeues it"])
def test_a_job_that_is_requeued_by_others_does_not_say_that_it_cannot(
    cause: str, slurm: Cluster, tmp_path: Path
) -> None:
    one = {"pretrain.exposure": [0], "finetune.lr": [0.005]}
    study = linear_study(tmp_path / "study", execution=EXECUTION, grid=one, **{"pretrain.time": 4 * 0.01 * SECOND})
    store = tmp_path / "runs"
    retain("submit", study, "--store", store, more=slurm.environment)
    wait_until(lambda: any(run.is_running() and run.state().attempts for run in Store(store).runs()), "training")
    (training,) = [run for run in Store(store).runs() if run.is_running()]
    (job_id,) = [one for one, state in queue(slurm).items() if state == "RUNNING"]
    if cause == "an operator requeues it":
        call(slurm, "scontrol", "requeue", job_id)
    else:
        node = job(slurm, job_id)["NodeList"]
        call(slurm, "scontrol", "update", f"nodename={node}", "state=down", "reason=maintenance")
        wait_until(lambda: not training.is_running(), "the run to stop")
        call(slurm, "scontrol", "update", f"nodename={node}", "state=resume")
    wait_for_the_end(slurm)
    assert {row["state"] for row in statuses(slurm, study, store).values()} == {"done"}
    log = training.log.read_text()
    assert "was requeued already" in log
    assert "cannot requeue itself" not in log


def test_a_job_that_waits_for_more_than_its_partition_allows_names_the_field_and_starts_once_that_is_changed(
    slurm: Cluster, tmp_path: Path
) -> None:
    one, high = {"pretrain.exposure": [0], "finetune.lr": [0.005]}, "execution.slurm.partition=high"
    study, store = linear_study(tmp_path / "study", execution=EXECUTION, grid=one), tmp_path / "runs"
    partition = ["scontrol", "update", "partitionname=high"]
    call(slurm, *partition, "state=down")
    try:
        retain("submit", study, high, "--store", store, more=slurm.environment)
        call(slurm, *partition, "state=up", "MaxTime=3")
        wait_until(lambda: "PartitionTimeLimit" in reasons(slurm, study, store), "SLURM's reason")
        assert "lower execution.slurm.minutes, then cancel and retry its study" in reasons(slurm, study, store)
        for verb in ("cancel", "retry"):
            retain(verb, study, high, "execution.slurm.minutes=3", "--store", store, more=slurm.environment)
        wait_for_the_end(slurm)
    finally:
        call(slurm, *partition, "state=up", "MaxTime=UNLIMITED")
    assert {row["state"] for row in statuses(slurm, study, store).values()} == {"done"}


def reasons(cluster: Cluster, study: Path, store: Path) -> str:
    """Why the runs of a study wait, one a line."""
    return "\n".join(str(row["reason"]) for row in statuses(cluster, study, store).values())
