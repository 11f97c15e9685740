"""`retain doctor` on a real SLURM: what it says of two kinds of sites, and a probe of each partition."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.retain import COMMAND
from tests.slurm.cluster.cluster import Cluster, call, wait_until
from tests.slurm.cluster.jobs import queue, submit, wait_for_state

pytestmark = pytest.mark.slurm


def doctor(cluster: Cluster, *arguments: str | Path, code: int = 0, **variables: str) -> dict[str, Any]:
    """The document of `retain doctor --json`."""
    own = cluster.environment | {"RETAIN_SITES": os.devnull} | variables
    command = [*COMMAND, "doctor", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def findings(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {found["subject"]: (found["level"], found["what"]) for found in document["findings"]}


def test_a_site_that_warns_and_one_that_does_not_are_told_apart(
    slurm: Cluster, silent_slurm: Cluster, tmp_path: Path
) -> None:
    warns, silent = doctor(slurm, "--store", tmp_path), doctor(silent_slurm, "--store", tmp_path)
    assert (warns["slurm"]["preempt_send_user_signal"], silent["slurm"]["preempt_send_user_signal"]) == (True, False)
    level, what = findings(warns)["preemption"]
    assert level == "ok"
    assert "with preempt_send_user_signal: a preempted job is warned" in what
    assert "(5 s in low)" in what
    level, what = findings(silent)["preemption"]
    assert level == "note"
    assert "this site sends no user signal at preemption: a preempted job has GraceTime seconds after TERM" in what
    assert "(1 s in low)" in what
    assert (warns["slurm"]["accounting"], silent["slurm"]["accounting"]) == (True, False)
    assert "accounting" in findings(silent)
    assert "accounting" not in findings(warns)
    for document, cluster in ((warns, slurm), (silent, silent_slurm)):
        assert document["slurm"]["cluster"] == cluster.name
        assert document["slurm"]["version"] in findings(document)["SLURM"][1]
        low, high = document["slurm"]["partitions"]
        assert (low["name"], low["nodes"], low["default"], low["preempt_mode"]) == ("low", 4, True, "REQUEUE")
        assert (high["name"], high["gpus"], high["max_minutes"], high["preempt_mode"]) == ("high", 32, None, "OFF")
        assert document["slurm"]["max_array_size"] == cluster.site.max_array_size
        assert document["slurm"]["job_requeue"]


def test_a_probe_runs_in_every_partition_and_leaves_nothing(
    slurm: Cluster, silent_slurm: Cluster, tmp_path: Path
) -> None:
    for cluster in (slurm, silent_slurm):
        document = doctor(cluster, "--probe", "--store", tmp_path / "runs")
        outcomes = {probe["partition"]: (probe["outcome"], probe["sbatch"]) for probe in document["probes"]}
        assert outcomes == {"low": ("passed", True), "high": ("passed", True)}
        assert "sees the store, writes into it and runs Python 3." in findings(document)["probe low"][1]
        assert not list(tmp_path.iterdir())
        wait_until(lambda cluster=cluster: not queue(cluster), "the jobs to end behind their reports")


def test_a_probe_uses_the_sites_profile_and_says_what_fails(silent_slurm: Cluster, tmp_path: Path) -> None:
    sites = tmp_path / "sites.yaml"
    sites.write_text(
        "broken: {partition: high, setup: ['exit 7']}\n"
        f"mine: {{match: '{silent_slurm.name}', partition: 'low', gres: 'gpu:{{gpus}}', constraint: no-such-feature}}\n"
    )
    document = doctor(silent_slurm, "--probe", "--store", tmp_path, code=3, RETAIN_SITES=str(sites))
    assert findings(document)["site"][1].startswith("mine in ")
    assert [probe["outcome"] for probe in document["probes"]] == ["refused"]
    assert "sbatch refuses a job there" in findings(document)["probe low"][1]
    asked = ("--probe", "--site", "broken", "--store", tmp_path)
    document = doctor(silent_slurm, *asked, code=3, RETAIN_SITES=str(sites))
    assert [(probe["partition"], probe["outcome"]) for probe in document["probes"]] == [("high", "failed")]
    level, what = findings(document)["probe high"]
    assert level == "missing"
    assert "ended with code 7 on n" in what


def test_a_probe_that_has_to_wait_is_taken_back(
    silent_slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retain.launchers.checks.doctor_nodes import probe_partitions
    from retain.launchers.slurm.partitions import read_partitions

    busy = submit(silent_slurm, "sleep 300", "--nodes=4", "--exclusive", "--partition=high")
    wait_for_state(silent_slurm, busy, "RUNNING")
    for name, value in silent_slurm.variables.items():
        monkeypatch.setenv(name, value)
    reports = probe_partitions(read_partitions(), tmp_path, None, patience_s=3)
    assert {report.outcome for report in reports} == {"waiting"}
    assert all("had not reported after 3 s (pending" in report.detail for report in reports)
    assert list(queue(silent_slurm).values()) == ["RUNNING"], "only the job that was there already"
    assert not list(tmp_path.iterdir())
    assert "doctor" not in call(silent_slurm, "squeue", "--noheader", "--format=%j")
