"""`retain doctor` on any machine, with SLURM or without."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.checks import doctor
from retain.launchers.checks.doctor_cluster import Cluster, Qos, cluster_findings
from retain.launchers.checks.doctor_nodes import ProbeReport, probe_findings
from retain.launchers.slurm.partitions import Limits, Partition
from tests.retain import COMMAND, environment


def called(*arguments: str | Path, folder: Path, code: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """`retain doctor` without any program of SLURM on PATH, and without the developer's own sites."""
    alone = environment() | {"PATH": str(folder / "no programs"), "XDG_CONFIG_HOME": str(folder)} | variables
    command = [*COMMAND, "doctor", *map(str, arguments)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def findings(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {found["subject"]: (found["level"], found["what"]) for found in document["findings"]}


def test_without_slurm_the_doctor_reports_what_works_here(tmp_path: Path) -> None:
    document = json.loads(called("--json", "--store", tmp_path / "runs", folder=tmp_path, code=0).stdout)
    found = findings(document)
    assert (document["ok"], document["slurm"], document["probes"]) == (True, None, None)
    assert found["SLURM"] == ("note", "sbatch and squeue are not on PATH: studies can train here, but not be submitted")
    assert found["Python"][1].endswith(f"at {sys.executable}")
    assert "torch 2." in found["packages"][1]
    assert found["store"][0] == "ok"
    assert {"GPUs", "Ray", "disk", "site"} < set(found)
    assert not list(tmp_path.iterdir()), "the doctor leaves nothing behind"


def test_a_probe_without_slurm_is_missing_and_exits_with_3(tmp_path: Path) -> None:
    printed = called("--probe", "--store", tmp_path / "runs", folder=tmp_path, code=3).stdout
    assert "there is no SLURM to probe; log in where sbatch is on PATH" in printed


def test_an_invalid_sites_file_is_a_finding_and_an_unknown_site_an_error(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text("north: {partitoin: gpu}")
    sites = {"RETAIN_SITES": str(tmp_path / "sites.yaml")}
    document = json.loads(called("--json", "--store", tmp_path, folder=tmp_path, code=3, **sites).stdout)
    assert findings(document)["site"] == (
        "missing",
        f"{tmp_path / 'sites.yaml'}: north.partitoin: unknown field; did you mean partition?",
    )
    (tmp_path / "sites.yaml").write_text("north: {partition: gpu}")
    refused = called("--site", "south", folder=tmp_path, code=2, **sites).stderr
    assert refused.startswith("retain: --site south: unknown site in ")
    assert len(refused.splitlines()) == 1


def test_a_slurm_that_does_not_answer_is_missing_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "squeue", "scontrol"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = called("--json", "--store", tmp_path, folder=tmp_path, code=3, PATH=f"{tmp_path / 'bin'}:{os.defpath}")
    level, what = findings(json.loads(done.stdout))["SLURM"]
    assert level == "missing"
    assert "Unable to contact slurm controller" in what


def test_a_store_inside_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    document = json.loads(called("--json", "--store", tmp_path / "file" / "runs", folder=tmp_path, code=3).stdout)
    assert findings(document)["store"][0] == "missing"
    assert "is a file; choose another with --store" in findings(document)["store"][1]


def test_a_file_system_without_links_is_refused_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert doctor.file_system_lacks(tmp_path) is None
    monkeypatch.setattr(os, "link", refuse)
    assert "Operation not permitted" in str(doctor.file_system_lacks(tmp_path))
    monkeypatch.setattr(os, "link", lambda *_: None)
    assert "two processes could train one run" in str(doctor.file_system_lacks(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named() -> None:
    installed, missing = doctor.package_findings(["rich", "no-such-package"])
    assert (installed.level, missing.level) == ("ok", "missing")
    assert "no-such-package" in missing.subject


def cluster(mode: str = "REQUEUE", grace: int = 60, qos: tuple[Qos, ...] = (), **config: str) -> Cluster:
    settings = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE", "KillWait": "30 sec"} | config
    partitions = [Partition("low", True, "UP", 4, 8, 60, mode, grace)]
    return Cluster(settings, partitions, Limits(1000, None), qos)


def printed(site: Cluster) -> str:
    return "\n".join(f"{found.subject}: {found.level}: {found.what}" for found in cluster_findings(site))


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        (cluster(PreemptType="preempt/none"), "preemption: ok: no job is preempted here"),
        (
            cluster(),
            "preemption: note: this site sends no user signal at preemption: a preempted job has GraceTime seconds",
        ),
        (cluster(SlurmctldParameters="a,preempt_send_user_signal"), "preemption: ok: preempt/partition_prio with"),
        (cluster(PreemptParameters="send_user_signal"), "preemption: ok: preempt/partition_prio with"),
        (cluster("CANCEL"), "preemption in low: note: a preempted job is cancelled, not requeued"),
        (cluster("SUSPEND,GANG"), "preemption in low: ok: a preempted job is suspended"),
        (cluster(grace=0), "preemption in low: note: GraceTime 0: a preempted job has KillWait (30 s)"),
        (cluster(PreemptType="preempt/qos", qos=(Qos("scavenge", "", "cluster", 20),)), "(20 s in QOS scavenge)"),
        (cluster(), "at most 60 minutes an attempt"),
        (cluster(), "MaxArraySize: ok: 1001: more than 1000 siblings"),
        (cluster(JobRequeue="0"), "JobRequeue: ok: 0: jobs are not requeued unless they ask"),
        (cluster(), "requeue: ok: a requeued job starts again after 121 s at the earliest"),
        (cluster(AuthInfo="cred_expire=5"), "requeue: ok: a requeued job starts again after 6 s at the earliest"),
    ],
)
def test_a_setting_is_reported_with_its_meaning(site: Cluster, sentence: str) -> None:
    assert sentence in printed(site)


def test_a_partition_that_accepts_no_job_is_missing_only_if_no_partition_does() -> None:
    passed = ProbeReport("a", "passed", "n1", "3.12", True, 1.0, "n1 sees the store")
    refused = ProbeReport("b", "refused", None, None, None, 0.1, "sbatch refuses a job there: no account")
    waiting = ProbeReport("c", "waiting", None, None, None, 120.0, "had not reported after 120 s")
    failed = ProbeReport("d", "failed", None, None, None, 2.0, "n9 does not see the store's folder")

    def levels(*reports: ProbeReport) -> list[str]:
        return [found.level for found in probe_findings(reports)]

    assert levels(passed, refused, waiting) == ["ok", "note", "note"]
    assert levels(refused) == ["missing"]
    assert levels(refused, waiting) == ["note", "note"]
    assert levels(passed, failed) == ["ok", "missing"]
    assert levels() == ["missing"]
