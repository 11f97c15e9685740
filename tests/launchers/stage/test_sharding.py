"""The 1B model's layout, made narrow, held in parts by two and four processes as 1B is by GPUs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.checks.verify import verify_store
from retain.lightning_modules.objective import heldout_loss
from retain.results.store.export import export_run
from retain.results.store.runs import Store
from retain.sweeps.schema.models import PRESETS, Architecture, parameters
from tests.results.runs import of_stage, set_back
from tests.retain import losses, train_here, weights
from tests.studies import tiny_study

NARROW = {"layers": 4, "hidden": 72, "heads": 9, "kv_heads": 9, "mlp": 192, "vocabulary": 320, "context": 64}
LAYOUT: dict[str, Any] = {
    "model": {"preset": "smollm2-1b", **NARROW},
    "grid": {},
    "pretrain.exposure": 1,
    "pretrain.exposure_schedule": "late",
    "pretrain.tokens": 2560,
    "pretrain.warmup": 2,
    "posttrain.tokens": 1280,
    "posttrain.max_tokens": 2560,
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 6, "alpha": 12},
    "posttrain.early_stopping": {"every": 4, "patience": 3},
    "finetune.tokens": 1280,
    "finetune.anchor": {"l2sp": 0.1, "ewc": 100, "sequences": 8},
    "execution": {"save_steps": 3, "keep_states": True, "micro_batch": 2},
}
"""A few steps of each stage; a rank of six is not divided by four processes."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("narrow") / "study", **LAYOUT)


@pytest.fixture(scope="module")
def one(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process that holds everything."""
    return trained_by(1, study, tmp_path_factory.mktemp("one") / "runs")


@pytest.fixture(scope="module")
def two(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of two processes that hold a half each."""
    return trained_by(2, study, tmp_path_factory.mktemp("two") / "runs")


def trained_by(devices: int, study: Path, store: Path, *overrides: str) -> Path:
    states = train_here(study, store, f"execution.devices={devices}", "execution.strategy=fsdp", *overrides)
    assert {state.state for state in states.values()} == {"done"}
    return store


def assert_same_training(store: Path, reference: Path) -> None:
    """Losses to the last bits of fp32 sums in another order; the same tokens exactly."""
    ours, expected = losses(store), losses(reference)
    assert ours.keys() == expected.keys()
    for key, found in ours.items():
        assert found["token_digest"] == expected[key]["token_digest"]
        assert found["steps"] == expected[key]["steps"]
        for split, loss in found["splits"].items():
            assert loss["loss"] == pytest.approx(expected[key]["splits"][split]["loss"], rel=1e-4), (key, split)


def test_the_narrow_model_has_the_layout_of_the_1b_model(study: Path, one: Path) -> None:
    preset, recipe = PRESETS["smollm2-1b"], of_stage(one, "pretrain").spec()["recipe"]
    narrow = Architecture(**recipe["model"])
    assert (narrow.tied, narrow.heads == narrow.kv_heads) == (preset.tied, preset.heads == preset.kv_heads)
    assert narrow.mlp / narrow.hidden == preset.mlp / preset.hidden
    assert narrow.rope_base == preset.rope_base


def test_two_processes_train_as_one(one: Path, two: Path) -> None:
    assert_same_training(two, one)


@pytest.mark.slow
def test_two_processes_that_recompute_activations_train_to_the_same_bits(
    study: Path, two: Path, tmp_path: Path
) -> None:
    store = trained_by(2, study, tmp_path / "runs", "execution.checkpointing=true")
    assert weights(store) == weights(two)
    assert losses(store) == losses(two)


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_states_of_two_processes_are_gone_on_from_by_one_and_by_four_to_the_same_end(
    devices: int, study: Path, one: Path, two: Path, tmp_path: Path
) -> None:
    """The first two stages resume from the checkpoints of two processes; the third starts from the beginning."""
    store = tmp_path / "runs"
    shutil.copytree(two, store, symlinks=True)
    begun = {stage: set_back(of_stage(store, stage)) for stage in ("pretrain", "posttrain")} | {"finetune": 0}
    shutil.rmtree(of_stage(store, "finetune").folder)
    trained_by(devices, study, store)
    assert_same_training(store, one)
    assert verify_store(Store(store), None)[1] == []
    for stage, tokens in begun.items():
        last = of_stage(store, stage).state().attempts[-1]
        assert (last.tokens_at_start, last.world) == (tokens, devices)
        assert (f"resumes with {devices} ranks; the run had 2" in str(last.note)) == (tokens > 0)


@pytest.mark.parametrize("stage", ["posttrain", "finetune"])
def test_what_two_processes_hold_in_parts_is_one_hugging_face_folder(stage: str, two: Path, tmp_path: Path) -> None:
    run = of_stage(two, stage)
    folder = export_run(Store(two), run, tmp_path / stage)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    recipe = of_stage(two, "pretrain").spec()["recipe"]
    assert sum(weight.numel() for weight in model.parameters()) == parameters(Architecture(**recipe["model"]))
    for split, corpus in run.spec()["evaluation"].items():
        loss = heldout_loss(model, heldout_sequences(two, corpus), torch.device("cpu"), bf16=False).loss
        assert loss == pytest.approx(run.losses()["splits"][split]["loss"], rel=1e-5)
