"""Stages whose steps are compiled, through the launcher."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from launchers.step_form import StepForm, record_form, recorded_form
from results.store import Store
from tests.launchers.test_sharding import of_stage, set_back
from tests.retain import losses, train_here, weights
from tests.studies import tiny_study

COMPILED: dict[str, Any] = {
    "grid": {},
    "pretrain.dropout": 0.1,
    "pretrain.tokens": 2560 + 96,
    "posttrain.max_tokens": 2560,
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 4, "alpha": 8},
    "finetune.tokens": 1280,
    "execution": {"compile": True, "precision": "bf16", "save_steps": 4, "keep_states": True},
}
"""Dropout and a smaller last batch in pretraining, adapters in post-training, all weights in fine-tuning."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny study, compiled in bf16, and its store with all states kept."""
    folder = tmp_path_factory.mktemp("compiled")
    study = tiny_study(folder / "study", **COMPILED)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}, states
    return study, folder / "runs"


def test_compiled_stages_go_on_from_their_states_to_the_same_bits(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = compiled
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    begun = {stage: set_back(of_stage(store, stage)) for stage in ("pretrain", "posttrain", "finetune")}
    # Left to itself, a run goes on as it began.
    train_here(study, store, "execution.compile=auto")
    for stage, tokens in begun.items():
        run = of_stage(store, stage)
        assert run.state().attempts[-1].tokens_at_start == tokens
        assert run.state().attempts[-1].note is None
        assert recorded_form(run) == StepForm(compiled=True, micro_batch=None)
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


def test_a_run_that_goes_on_without_compiling_says_so(compiled: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = compiled
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    set_back(of_stage(store, "finetune"))
    shutil.rmtree(store / "cache", ignore_errors=True)
    train_here(study, store, "execution.compile=false")
    run = of_stage(store, "finetune")
    note = run.state().attempts[-1].note
    assert note is not None
    assert "goes on without compiled steps what began with them: the same batches, other last bits" in note
    for split, loss in run.losses()["splits"].items():
        assert loss["loss"] == pytest.approx(losses(undisturbed)[run.key]["splits"][split]["loss"], abs=0.02)
    assert Store(store).run(run.key).losses()["token_digest"] == losses(undisturbed)[run.key]["token_digest"]


def test_what_a_run_records_of_its_steps_is_read_again(tmp_path: Path) -> None:
    run = Store(tmp_path).run("key")
    assert recorded_form(run) is None
    run.folder.mkdir()
    record_form(run, StepForm(True, 8))
    assert recorded_form(run) == StepForm(True, 8)
