"""Corpora that are prepared by jobs on a real SLURM."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.launchers.local.test_preparation import large_study
from tests.retain import losses, train_here, weights
from tests.slurm.chaos import Chaos
from tests.slurm.cluster.cluster import Cluster, wait_until
from tests.slurm.cluster.jobs import queue

pytestmark = pytest.mark.slurm

EXECUTION: dict[str, Any] = {
    "accelerator": "cpu",
    "data": {"part": 20_000, "slurm": {"cpus": 1, "partition": "low", "minutes": 10}},
    "slurm": {"minutes": 10, "cpus": 1, "partition": "low"},
}


def prepared(cluster: Cluster, folder: Path, **overrides: Any) -> Chaos:
    study = large_study(folder / "study", execution=EXECUTION, **overrides)
    return Chaos(cluster, study, folder / "runs", random.Random(1))


def ended(chaos: Chaos) -> bool:
    return not queue(chaos.cluster)


def test_a_study_that_is_submitted_without_its_data_ends_finished_after_logging_off(
    slurm: Cluster, tmp_path: Path
) -> None:
    grid = {"pretrain.exposure": [1]}
    chaos = prepared(slurm, tmp_path, grid=grid, **{"corpora.music.tokens": 60_000})
    said = chaos.retain("submit", chaos.study).stdout
    assert "that prepare data" in said
    assert "a job submits the study's stages once its data is prepared" in said
    stages = {row["stage"] for row in chaos.status()}
    assert {"prepare", "assemble", "continue"} <= stages
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    rows = chaos.status()
    assert {row["stage"] for row in rows} == {"pretrain", "posttrain", "finetune"}
    assert {row["state"] for row in rows} == {"done"}
    train_here(chaos.study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")
    assert losses(chaos.store) == losses(tmp_path / "calm")
