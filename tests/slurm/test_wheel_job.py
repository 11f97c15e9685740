"""Jobs of the installed wheel, outside a checkout."""

from pathlib import Path

import pytest

from tests.slurm.cluster.cluster import Cluster, wait_until
from tests.slurm.cluster.jobs import queue
from tests.studies import linear_study
from tests.wheel import install_wheel

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_slurm_job_runs_the_installed_package(slurm: Cluster, tmp_path: Path) -> None:
    installed = install_wheel(tmp_path)
    study = linear_study(installed.folder / "linear", execution={"accelerator": "cpu", "slurm": {"minutes": 5}})
    installed.json("submit", study, more=slurm.environment)
    wait_until(lambda: not queue(slurm), "queue empty", 120)
    rows = installed.json("status", study, more=slurm.environment)["runs"]
    assert {row["state"] for row in rows} == {"done"}
