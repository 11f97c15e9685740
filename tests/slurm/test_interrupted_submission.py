"""A `retain submit` that is killed, or fails, while it calls sbatch: its runs are named, found again and cancelled."""

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.retain import retain, retain_json
from tests.slurm.chaos import Chaos
from tests.slurm.cluster.cluster import Cluster
from tests.slurm.cluster.jobs import queue
from tests.studies import linear_study

pytestmark = pytest.mark.slurm
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
