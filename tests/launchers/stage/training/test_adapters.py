"""Stages that train adapters, through the launcher: what they leave, and how they go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from retain.results.store.runs import Store
from tests.results.runs import of_stage, set_back
from tests.retain import losses, train_here, weights
from tests.studies import tiny_study

ADAPTED: dict[str, Any] = {
    "grid": {},
    "pretrain.exposure": 1,
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "posttrain.dropout": 0.1,
    "posttrain.replay": 0.25,
    "posttrain.early_stopping": {"every": 4, "patience": 3},
    "finetune.method": "lora",
    "finetune.lora": {"rank": 2, "targets": ["o_proj", "up_proj"]},
    "execution": {"save_steps": 3, "keep_states": True},
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny study, its head tied, with adapters in both later stages, and its store with all states kept."""
    folder = tmp_path_factory.mktemp("adapted")
    study = tiny_study(folder / "study", **ADAPTED)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}
    return study, folder / "runs"


def test_stages_with_adapters_go_on_from_their_states_to_the_same_bits(
    adapted: tuple[Path, Path], tmp_path: Path
) -> None:
    study, undisturbed = adapted
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    begun = {stage: set_back(of_stage(store, stage)) for stage in ("posttrain", "finetune")}
    train_here(study, store)
    assert {stage: of_stage(store, stage).state().attempts[-1].tokens_at_start for stage in begun} == begun
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


def test_a_state_holds_the_adapters_and_not_the_frozen_base_again(adapted: tuple[Path, Path]) -> None:
    for stage in ("posttrain", "finetune"):
        run = of_stage(adapted[1], stage)
        state = max(run.checkpoint.glob("step-*"))
        with safe_open(state / "rank-00000.safetensors", "np") as file:
            assert all(".lora_A." in name or ".lora_B." in name for name in file.keys())  # noqa: SIM118


def test_the_head_is_untied_by_its_adapter_and_every_folder_is_a_plain_llama(adapted: tuple[Path, Path]) -> None:
    tied = {}
    for run in Store(adapted[1]).runs():
        config = json.loads((run.model / "config.json").read_text())
        tied[run.spec()["stage"]] = config["tie_word_embeddings"]
        assert not list(run.model.glob("adapter*"))
        with safe_open(run.model / "model.safetensors", "np") as file:
            assert ("lm_head.weight" in file.keys()) == (not config["tie_word_embeddings"])  # noqa: SIM118
            assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118
    assert tied == {"pretrain": True, "posttrain": False, "finetune": False}
