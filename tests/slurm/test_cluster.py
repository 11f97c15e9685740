"""The cluster does what sites do, without any of Retain: what else the tests in this folder find is Retain's."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import packages
from tests.slurm.cluster.cluster import (
    REPOSITORY,
    Cluster,
    Site,
    call,
    kill_controller,
    kill_node,
    start_controller,
    start_node,
    stop_controller,
    wait_until,
)
from tests.slurm.cluster.jobs import job, queue, state, submit, wait_for_state
from tests.slurm.cluster.processes import processes
from tests.slurm.conftest import require_slurm

pytestmark = pytest.mark.slurm

REQUEUES_ITSELF_WHEN_TOLD = """
trap 'echo told; scontrol requeue $SLURM_JOB_ID' USR2
echo run $SLURM_RESTART_COUNT
sleep 300 & wait; wait
"""
WHOLE_CLUSTER = ("--nodes=4", "--exclusive")


def printed(output: Path) -> list[str]:
    """The lines of a job itself, over all its runs; SLURM writes its own between them."""
    lines = output.read_text().splitlines() if output.exists() else []
    return [line for line in lines if not line.startswith(("slurmstepd", "srun:"))]


def test_a_job_sees_its_gpus(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = "echo $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS; srun sh -c 'echo $SLURM_STEP_GPUS $SLURM_PROCID'"
    done = submit(slurm, script, "--gres=gpu:2", "--ntasks=2", output=output)
    wait_for_state(slurm, done, "COMPLETED")
    assert sorted(printed(output)) == ["0,1 0", "0,1 0,1", "0,1 1"]
    wait_until(lambda: "COMPLETED" in call(slurm, "sacct", "-n", "-X", "-j", done, "--format=State"), "accounted")


def test_preemption_requeues_with_and_without_the_user_signal(
    slurm: Cluster, silent_slurm: Cluster, tmp_path: Path
) -> None:
    told, untold = tmp_path / "told", tmp_path / "untold"
    sites = {told: slurm, untold: silent_slurm}
    asks = (*WHOLE_CLUSTER, "--signal=B:USR2@60", "--time=60")
    low = {output: submit(site, REQUEUES_ITSELF_WHEN_TOLD, *asks, output=output) for output, site in sites.items()}
    wait_until(lambda: all(printed(output) == ["run"] for output in sites), "low jobs run")
    high = {output: submit(site, "true", "--partition=high") for output, site in sites.items()}
    wait_for_state(slurm, high[told], "COMPLETED")
    wait_until(lambda: printed(told) == ["run", "told", "run 1"], "told job requeued itself")
    wait_for_state(silent_slurm, high[untold], "COMPLETED")
    wait_until(lambda: printed(untold) == ["run", "run 1"], "untold job was requeued")
    assert [job(site, low[output])["Restarts"] for output, site in sites.items()] == ["1", "1"]


def test_a_node_death_requeues_its_jobs(silent_slurm: Cluster, tmp_path: Path) -> None:
    # A script may go on for a moment after its step has failed with the node.
    script = "echo run $SLURM_RESTART_COUNT; srun sleep 300 && echo ended"
    outputs = {"n2": tmp_path / "one", "n[1-2]": tmp_path / "both"}
    for nodes, output in outputs.items():
        submit(silent_slurm, script, f"--nodelist={nodes}", output=output)
    lost = submit(silent_slurm, "sleep 300", "--nodelist=n2", "--no-requeue")
    elsewhere = submit(silent_slurm, "sleep 300", "--nodelist=n3")
    wait_until(lambda: len(processes(silent_slurm.folder, lambda it: it.name == "sleep")) == 5, "all steps run")
    kill_node(silent_slurm, "n2")
    assert not processes(silent_slurm.folder, lambda it: it.node == "n2")
    assert state(silent_slurm, lost) == "NODE_FAIL"
    assert state(silent_slurm, elsewhere) == "RUNNING"
    start_node(silent_slurm, "n2")
    # Where slurmctld loses the node once more, they run a third time.
    wait_until(lambda: all(printed(output)[:2] == ["run", "run 1"] for output in outputs.values()), "both run again")


@pytest.mark.parametrize("end", [stop_controller, kill_controller])
def test_a_controller_restart_keeps_jobs_and_queue(slurm: Cluster, end: Callable[[Cluster], None]) -> None:
    runs = submit(slurm, "sleep 300", *WHOLE_CLUSTER)
    wait_until(lambda: len(processes(slurm.folder, lambda it: it.name == "sleep")) == 1, "the job runs")
    array = submit(slurm, "true", "--array=0-2")
    held = submit(slurm, "true", "--hold")
    if end is kill_controller:
        # It saves its state every five seconds, the ids of jobs as four bytes each.
        saved, newest = slurm.folder / "state" / "job_state", int(held).to_bytes(4, "big")
        wait_until(lambda: saved.exists() and newest in saved.read_bytes(), "all jobs saved")
    before = queue(slurm)
    end(slurm)
    start_controller(slurm)
    assert queue(slurm) == before
    assert job(slurm, held)["Reason"] == "JobHeldUser"
    assert len(processes(slurm.folder, lambda it: it.name == "sleep")) == 1
    call(slurm, "scancel", runs)
    for task in range(3):
        wait_for_state(slurm, f"{array}_{task}", "COMPLETED")


def test_an_array_of_fifty_runs_each_task_once(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "out"
    submit(slurm, "echo $SLURM_ARRAY_TASK_ID", "--array=0-49%20", output=output)
    wait_until(lambda: not queue(slurm), "array done")
    assert sorted(printed(output), key=int) == [str(task) for task in range(50)]


def test_clusters_side_by_side_know_nothing_of_each_other(slurm: Cluster, silent_slurm: Cluster) -> None:
    here = submit(slurm, "sleep 300")
    there = submit(silent_slurm, "sleep 300")
    wait_for_state(slurm, here, "RUNNING")
    wait_for_state(silent_slurm, there, "RUNNING")
    assert set(queue(slurm)) == {here}
    assert set(queue(silent_slurm)) == {there}


def test_limits_of_a_site_are_enforced(start_slurm: Callable[[Site], Cluster]) -> None:
    cluster = start_slurm(Site(nodes=1, max_array_size=10, max_submit=12))
    with pytest.raises(subprocess.CalledProcessError, match="Invalid job array specification"):
        submit(cluster, "true", "--hold", "--array=0-10")
    submit(cluster, "true", "--hold", "--array=0-9")
    with pytest.raises(subprocess.CalledProcessError, match="QOSMaxSubmitJobPerUserLimit"):
        submit(cluster, "true", "--hold", "--array=0-2")
    submit(cluster, "true", "--hold", "--array=0-1")


DETACHED = "setsid --fork setsid --fork sh -c 'touch {started}; sleep 300'; sleep 300"
TESTS = """
import sys, time
from pathlib import Path
from tests.slurm.cluster.cluster import Site, running, wait_until
from tests.slurm.cluster.jobs import submit

folder, started, script, seconds = sys.argv[1:]
with running(Path(folder), Site(accounting=False)) as cluster:
    submit(cluster, script, "--nodes=2")
    wait_until(Path(started).exists, "job runs")
    time.sleep(float(seconds))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_outlives_a_cluster_or_the_tests_that_started_it(
    tmp_path_factory: pytest.TempPathFactory, killed: bool
) -> None:
    require_slurm(accounting=False)
    folder = tmp_path_factory.mktemp("c")
    started = tmp_path_factory.mktemp("job") / "started"
    words = [folder, started, DETACHED.format(started=started), 300 if killed else 0]
    with subprocess.Popen([sys.executable, "-c", TESTS, *map(str, words)], cwd=REPOSITORY) as tests:
        wait_until(started.exists, "job runs")
        if killed:
            wait_until(lambda: len(processes(folder, lambda it: not it.is_daemon)) >= 3, "all of the job runs")
            tests.kill()
    wait_until(lambda: [entry.name for entry in folder.iterdir()] == ["log"], "cluster gone")
    assert not processes(folder)


def test_the_command(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_slurm(accounting=False)
    folder = tmp_path_factory.mktemp("c")

    def command(*words: str, expect: int = 0) -> str:
        call = [sys.executable, "-m", "tests.slurm.cluster.cluster", "--folder", str(folder), *words]
        done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == expect, done.stderr
        return done.stdout

    command("status", expect=1)
    command("up", "--nodes=2", "--no-accounting", "--patient-scontrol")
    try:
        command("status")
        line = command("env") + "scontrol show config | grep ClusterName; command -v scontrol"
        name, scontrol = subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout.splitlines()
        assert "test" in name
        assert scontrol == str(folder / "bin" / "scontrol")
        command("kill-node", "n2")
        assert "n2         down" in command("status", expect=1)
        command("start-node", "n2")
        command("stop-controller")
        assert "slurmctld  down" in command("status", expect=1)
        command("start-controller")
        command("status")
    finally:
        command("down")
    assert not folder.exists()
    command("down")


@pytest.mark.parametrize(("in_ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_slurm_tests_are_skipped_and_ci_fails(
    monkeypatch: pytest.MonkeyPatch, in_ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", in_ci)
    monkeypatch.setattr(packages, "missing", lambda accounting: ["slurmctld"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(outcome, match="slurmctld missing; as root, run"):
        require_slurm()


def test_packages_start_nothing_while_they_are_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policies_during = []
    wanted = [["munge"], ["munge"], []]
    monkeypatch.setattr(packages, "POLICY", policy)
    monkeypatch.setattr(packages, "missing", lambda accounting: wanted.pop(0))
    monkeypatch.setattr(packages, "why_not", lambda accounting: None)
    monkeypatch.setattr(packages, "apt_get", lambda *words, check: policies_during.append(subprocess.call(policy)))
    packages.install()
    assert policies_during == [101, 101]
    assert not policy.exists()
