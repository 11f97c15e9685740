"""Corpora that are prepared by jobs on a real SLURM."""

import random
from pathlib import Path
from typing import Any

import pytest

from retain.datamodules.corpora.tokenizer import train_tokenizer
from retain.results.store.runs import Store
from tests.launchers.local.test_preparation import calm, done_parts, fingerprint, large_study, parts
from tests.retain import losses, retain_json, train_here, weights
from tests.slurm.chaos import Chaos, kill_process, node_death
from tests.slurm.cluster.cluster import Cluster, wait_until
from tests.slurm.cluster.jobs import queue
from tests.studies import documents_of, replaced

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
    stages = {run.spec()["stage"] for run in Store(chaos.store).runs()}
    assert {"prepare", "assemble", "continue"} <= stages
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    rows = chaos.status()
    assert {row["stage"] for row in rows} == {"pretrain", "posttrain", "finetune"}
    assert {row["state"] for row in rows} == {"done"}
    train_here(chaos.study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")
    assert losses(chaos.store) == losses(tmp_path / "calm")


@pytest.mark.slow
def test_forty_parts_survive_a_kill_and_the_death_of_a_node(slurm: Cluster, tmp_path: Path) -> None:
    execution = replaced(EXECUTION, {"data.part": 7_500, "data.slurm.at_a_time": 20})
    study = large_study(tmp_path / "study", execution=execution)
    chaos = Chaos(slurm, study, tmp_path / "runs", random.Random(1))
    chaos.retain("data", study, "--launcher", "slurm")
    assert len(parts(chaos.store)) >= 39
    wait_until(lambda: kill_process(chaos), "a part that is being made", 120)
    before = done_parts(chaos.store)
    assert node_death(chaos)
    wait_until(lambda: ended(chaos), "the end of all jobs", 900)
    again = chaos.retain("data", study, "--launcher", "slurm")
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    assert not [run for run in parts(chaos.store) if not run.is_done()], again.stdout
    assert before.items() <= done_parts(chaos.store).items()
    document = retain_json("data", study, "--store", chaos.store)
    assert fingerprint(document) == calm(study, tmp_path / "calm")


def test_the_cause_of_a_failed_preparation_is_recorded_where_the_study_was_to_begin(
    slurm: Cluster, tmp_path: Path
) -> None:
    chaos = prepared(slurm, tmp_path, tokenizer={"hf": "tok"})
    train_tokenizer(documents_of("general"), 320).save(chaos.study.parent / "tok")
    file = chaos.study.parent / "music.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2999], '{"txt": "a"}', *lines[3000:]]))
    chaos.retain("submit", chaos.study)
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    rows = [row for row in chaos.status() if row["state"] != "done"]
    of_data = {row["stage"]: row for row in rows if row["stage"] in ("prepare", "assemble", "continue")}
    assert of_data["prepare"]["state"] == "failed"
    assert of_data["prepare"]["failure"] == "bad recipe"
    for stage in ("prepare", "assemble", "continue"):
        assert "music.jsonl, line 3000" in of_data[stage]["reason"]
    assert of_data["continue"]["state"] == "skipped"
