"""Mixtures in real runs: trained by the command line, verified, and resumed bit-exactly after kills."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.results.store.runs import Store
from tests.retain import losses, retain_here, retain_json, stop_here, train_here, train_killed, weights
from tests.studies import tiny_study

MIXED: dict[str, Any] = {
    "pretrain.tokens": 12_800,
    "pretrain.mix": {
        "chemistry": [
            {"passes": 2, "of": 640, "window": [0, 0.7]},
            {"passes": 3, "of": 640, "window": [0.7, 1], "replaces": True},
        ]
    },
    "posttrain.mix": {"general": {"share": 0.1}},
    "posttrain.replay": 0.1,
    "posttrain.early_stopping": {"every": 6, "patience": 2},
    "finetune.mix": {"music": {"share": 0.2}},
    "execution": {"save_steps": 5},
}


@pytest.mark.slow
def test_a_study_with_mixtures_is_planned_trained_and_verified(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path, grid={"finetune.mix.music.share": [0, 0.2]}), tmp_path / "runs"
    retain_here("data", study, "--store", store)
    planned = retain_json("plan", study, "--store", store)
    tuned = [stage for stage in planned["stages"] if stage["stage"] == "finetune"]
    assert [stage["axes"]["finetune.mix.music.share"] for stage in tuned] == [0, 0.2]
    assert [stage["tokens"] for stage in tuned] == [160 * 32, 200 * 32]
    retain_here("run", study, "--store", store)
    plain, mixed = (Store(store).run(stage["key"]) for stage in tuned)
    assert [run.losses()["steps"] for run in (plain, mixed)] == [20, 25]
    assert "0 problems" in retain_here("verify", study, "--store", store).stdout
    rows = retain_json("results", study, "--store", store)["trials"]
    assert [row["axes"] for row in rows] == [{"finetune.mix.music.share": 0}, {"finetune.mix.music.share": 0.2}]
    assert rows[1]["retained_posttraining_loss"] < rows[0]["retained_posttraining_loss"]


def test_a_mixture_that_exceeds_its_corpus_stops_a_run_before_anything_trains(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, grid={}, **{"finetune.mix": {"music": {"tokens": "1M"}}})
    done = retain_here("run", study, "--store", tmp_path / "runs", code=2)
    assert "tiny.yaml: finetune.mix.music: 1,000,000" in done.stderr
    assert "exceed the training split of corpus music" in done.stderr
    assert not list((tmp_path / "runs").glob("*/stage.json"))


@pytest.mark.slow
def test_a_run_with_mixtures_ends_in_the_same_bits_after_kills(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", grid={"pretrain.exposure": [1]}, **MIXED)
    train_here(study, tmp_path / "calm")
    store = stop_here(study, tmp_path / "runs")
    train_killed(study, store)
    assert weights(store) == weights(tmp_path / "calm")
    assert losses(store) == losses(tmp_path / "calm")
    runs = Store(store).runs()
    assert all("mix" in json.loads((run.folder / "stage.json").read_text())["recipe"] for run in runs)
    assert max(len(run.state().attempts) for run in runs) >= 2
    assert "0 problems" in retain_here("verify", "--store", store).stdout


@pytest.mark.slow
def test_a_drill_kills_a_study_with_mixtures_and_finds_no_difference(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", grid={"pretrain.exposure": [1]}, **MIXED)
    drilled = retain_json("drill", study, "--kills", "3", "--store", tmp_path / "runs")
    assert (drilled["kills"], drilled["differences"]) == (3, [])
