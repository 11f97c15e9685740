"""What SLURM's commands are called with, and how their errors read."""

import os
from pathlib import Path

import pytest

from retain.launchers.jobs.sbatch import outside_job
from retain.launchers.slurm.client import ask, cluster_environment, is_full, refusal
from retain.launchers.slurm.partitions import read_limits
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.sites import read_sites

OPTIONS = ("SBATCH_EXPORT", "SQUEUE_USERS", "SACCT_FORMAT", "SCANCEL_STATE", "SINFO_PARTITION", "SLURM_EXPORT_ENV")


def test_a_users_defaults_for_slurms_commands_reach_none_of_them_but_the_cluster_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*OPTIONS, "SLURM_JOB_ID", "SLURM_CONF", "SLURM_JWT", "SBATCH_CLUSTERS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "x")
    for environment in (cluster_environment(), dict(line.split("=", 1) for line in ask(["env"]).splitlines())):
        assert environment["SLURM_CONF"] == environment["SLURM_JWT"] == environment["SLURM_CLUSTERS"] == "x"
        assert not environment.keys() & {*OPTIONS, "SLURM_JOB_ID", "SBATCH_CLUSTERS"}
        assert "CUDA_VISIBLE_DEVICES" in environment
    with outside_job():
        inside = dict(line.split("=", 1) for line in ask(["env"]).splitlines())
    assert not inside.keys() & {*OPTIONS, "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"}
    assert inside["SLURM_CLUSTERS"] == "x"


def test_a_refusal_of_sbatch_is_said_once_with_its_cure() -> None:
    lines = ("invalid partition specified: x", "Batch job submission failed: Invalid partition name")
    assert refusal("".join(f"sbatch: error: {line}\n" for line in lines)) == (
        "invalid partition specified: x; Invalid partition name; set execution.slurm.partition to a partition that sinfo lists"
    )
    for reason, cure in (
        ("Invalid account or account/partition combination specified", "execution.slurm.account"),
        ("Invalid qos specification", "execution.slurm.qos"),
        ("Requested node configuration is not available", "ask for less on a node"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "execution.slurm.minutes"),
    ):
        assert cure in refusal(f"sbatch: error: Batch job submission failed: {reason}")


POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("limit", "full", "cure"),
    [
        ("QOSMaxSubmitJobPerUserLimit", True, ""),
        ("AssocGrpSubmitJobsLimit", True, ""),
        ("", True, ""),
        ("QOSMaxWallDurationPerJobLimit", False, "execution.slurm.minutes"),
        ("AssocMaxCpuPerJobLimit", False, "ask for less"),
        ("QOSMaxGRESPerUser", False, "ask for less"),
    ],
)
def test_a_limit_on_the_number_of_jobs_is_told_from_one_on_what_a_job_asks_for(
    limit: str, full: bool, cure: str
) -> None:
    printed = "".join(f"sbatch: error: {line}\n" for line in (limit, POLICY) if line)
    assert is_full(printed) == full
    if cure:
        assert refusal(printed).startswith(f"{limit}; ")
        assert cure in refusal(printed)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_user_without_a_name_or_a_home_needs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "RETAIN_SITES"):
        monkeypatch.delenv(name, raising=False)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(54_321)
            code = int(bool(read_sites()) or read_limits({"MaxArraySize": "1001"}).jobs is not None)
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "printed",
    [
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host",
        "squeue: fatal: Could not establish a configuration source",
        "squeue: error: s_p_parse_file: cannot stat file x: No such file\\nsqueue: fatal: Unable to process configuration file",
    ],
)
def test_a_slurm_client_without_a_cluster_says_so_without_the_words_of_a_resolver(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf '{printed}' >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        MissingResourceError, match=r"squeue is installed here and finds no cluster .*submit --launcher local"
    ) as raised:
        ask(["squeue"])
    assert "resolve" not in str(raised.value)
