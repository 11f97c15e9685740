"""`precision: auto` and `compile: auto` on CPUs: measured once for a kind of step, kept in the store, and kept by a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.checks.doctor_speed import default_findings
from retain.launchers.speed.folder import made_private_folder
from retain.launchers.speed.measured import read_speeds
from retain.launchers.stage.measuring.timing import (
    HOPELESS,
    ROUNDS,
    Timed,
    taking_turns,
    time_compiled,
    time_precisions,
)
from retain.launchers.stage.signals import AttemptStopped
from retain.launchers.stage.training.numerics import recorded_numerics
from retain.lightning_modules.lora import add_adapters
from retain.lightning_modules.models import load_model
from retain.lightning_modules.objective import heldout_loss
from retain.results.store.runs import Run, Store
from retain.sweeps.base.files import write_json
from tests.families import CONFIGS, tiny_model
from tests.results.runs import of_stage, set_back
from tests.retain import losses, retain_json, train_here, weights
from tests.studies import leave_out, tiny_study

LONG: dict[str, Any] = {
    "stages": ["pretrain", "finetune"],
    "grid": {},
    "pretrain.batch": 1,
    "finetune.tokens": 640,
    "execution": {"save_steps": 50, "keep_states": True, "accelerator": "cpu"},
}
"""240 steps of pretraining, which are enough to be measured, and two of fine-tuning in other batches."""
RECIPE: dict[str, Any] = {
    "sequence_length": 32,
    "dropout": 0.0,
    "lr": 1e-3,
    "weight_decay": 0.1,
    "betas": [0.9, 0.95],
    "clip": 1.0,
    "steps": 240,
}


def study_of(folder: Path, **fields: Any) -> Path:
    return leave_out(tiny_study(folder / "study", **LONG | fields), "posttrain")


def speeds_of(store: Path) -> list[Path]:
    return sorted(store.glob("cache/compile/*/*/steps/*.json"))


def answer(store: Path, **seconds: float) -> None:
    """Replace every measured speed of a store."""
    for place in speeds_of(store):
        write_json(place, json.loads(place.read_text()) | seconds)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study, and a store in which it has been trained and measured."""
    folder = tmp_path_factory.mktemp("measured")
    study = study_of(folder)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}, states
    return study, folder / "runs"


@pytest.fixture(scope="module")
def in_bf16(measured: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the study was trained in bf16, because that was measured to be four times as fast."""
    store = fresh(measured, tmp_path_factory.mktemp("bf16"), fp32=0.4, bf16=0.1)
    train_here(measured[0], store)
    return store


def copied(store: Path, folder: Path) -> Path:
    return Path(shutil.copytree(store, folder / "runs", symlinks=True))


def fresh(measured: tuple[Path, Path], folder: Path, **seconds: float) -> Path:
    """A store with the data and the speeds of another, `seconds` in place of some of these, and no runs."""
    store = folder / "runs"
    shutil.copytree(measured[1], store, symlinks=True)
    for run in [of_stage(store, "pretrain"), of_stage(store, "finetune")]:
        shutil.rmtree(run.folder)
    answer(store, **seconds)
    return store


def chosen(run: Run) -> tuple[bool | None, bool]:
    numerics = recorded_numerics(run)
    assert numerics is not None
    return numerics.bf16, numerics.compiled


def test_a_long_stage_is_measured_and_its_speeds_are_kept(measured: tuple[Path, Path]) -> None:
    found = [read_speeds(place) for place in speeds_of(measured[1])]
    assert len(found) == 2  # pretraining, and fine-tuning in other batches
    assert all(one is not None and one["fp32"] > 0 and one["bf16"] > 0 for one in found)


def test_seeds_take_the_answer_of_the_store_and_do_not_measure_again(
    measured: tuple[Path, Path], in_bf16: Path, tmp_path: Path
) -> None:
    store = copied(in_bf16, tmp_path)
    before = [place.read_bytes() for place in speeds_of(store)]
    train_here(measured[0], store, "seed=[0,1]")
    assert {chosen(run)[0] for place in store.glob("*/steps.json") for run in [Run(place.parent)]} == {True}
    assert [place.read_bytes() for place in speeds_of(store)] == before
    run = of_stage(store, "pretrain")
    assert run.state().attempts[-1].steps == "bf16, uncompiled"
    reason = "steps are in bf16: a step takes 100 ms in bf16 and 400 ms in fp32: 4.00 times as fast"
    assert reason in run.log.read_text()


def test_a_gain_within_the_noise_keeps_fp32(measured: tuple[Path, Path], tmp_path: Path) -> None:
    store = fresh(measured, tmp_path, fp32=0.0011, bf16=0.001)
    train_here(measured[0], store)
    run = of_stage(store, "pretrain")
    assert chosen(run) == (False, False)
    assert run.state().attempts[-1].steps == "fp32, uncompiled"
    assert "1.10 times as fast, and 1.15 would be needed" in run.log.read_text()


def test_a_run_keeps_the_precision_that_it_began_with_and_ends_in_the_same_bits(
    measured: tuple[Path, Path], in_bf16: Path, tmp_path: Path
) -> None:
    store = copied(in_bf16, tmp_path)
    ended, found = weights(store), losses(store)
    set_back(of_stage(store, "pretrain"))
    answer(store, fp32=0.1, bf16=0.4)
    train_here(measured[0], store)
    run = of_stage(store, "pretrain")
    assert run.state().attempts[-1].tokens_at_start > 0
    assert chosen(run) == (True, False)
    assert (weights(store), losses(store)) == (ended, found)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_as_before(
    measured: tuple[Path, Path], in_bf16: Path, tmp_path: Path
) -> None:
    store = copied(in_bf16, tmp_path)
    ended, run = weights(store), of_stage(store, "pretrain")
    set_back(run)
    shutil.rmtree(run.checkpoint)
    answer(store, fp32=0.1, bf16=0.4)
    train_here(measured[0], store)
    assert run.state().attempts[-1].tokens_at_start == 0
    assert weights(store) == ended


def test_held_out_losses_are_measured_in_fp32_whatever_the_steps_are_in(in_bf16: Path) -> None:
    store = in_bf16
    assert chosen(of_stage(store, "pretrain")) == (True, False)
    for stage in ("pretrain", "finetune"):
        run = of_stage(store, stage)
        model = load_model(run.model)
        for role, corpus in run.spec()["evaluation"].items():
            found = heldout_loss(model, heldout_sequences(store, corpus), torch.device("cpu"), bf16=False)
            assert found.loss == losses(store)[run.key]["splits"][role]["loss"], (stage, role)


@pytest.mark.parametrize(
    "content",
    [
        *(pytest.param(content, marks=pytest.mark.slow) for content in ("", "{}")),
        '{"format": 1, "fp32": "fast", "bf16": 1, "of": {}}',
    ],
)
def test_damaged_speeds_are_measured_again(content: str, measured: tuple[Path, Path], tmp_path: Path) -> None:
    store = fresh(measured, tmp_path)
    for place in speeds_of(store):
        place.write_text(content)
    train_here(measured[0], store)
    assert all(read_speeds(place) is not None for place in speeds_of(store))


def test_speeds_in_a_folder_that_others_may_write_decide_nothing(measured: tuple[Path, Path], tmp_path: Path) -> None:
    store = fresh(measured, tmp_path, fp32=0.4, bf16=0.1)
    folder = made_private_folder(store)
    assert folder is not None
    folder.parent.chmod(0o770)
    train_here(measured[0], store)
    run = of_stage(store, "pretrain")
    assert chosen(run) == (False, False)
    assert "no private folder" in run.log.read_text()


def test_a_short_study_measures_nothing_and_says_so(tmp_path: Path) -> None:
    study = study_of(tmp_path, **{"pretrain.batch": 8})
    train_here(study, tmp_path / "runs")
    run = of_stage(tmp_path / "runs", "pretrain")
    assert speeds_of(tmp_path / "runs") == []
    assert chosen(run) == (False, False)
    assert "30 steps from the start of the path are too few to measure" in run.log.read_text()


def test_what_a_study_states_is_not_measured(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    train_here(study, tmp_path / "runs", "execution.precision=fp32", "execution.compile=false")
    assert speeds_of(tmp_path / "runs") == []


def test_plan_and_doctor_say_what_is_chosen_and_why(measured: tuple[Path, Path], tmp_path: Path) -> None:
    store = fresh(measured, tmp_path, fp32=0.4, bf16=0.1)
    *lines, machine = retain_json("plan", measured[0], "--store", store)["defaults"]
    assert machine.startswith("on this machine stages train ")
    assert [line.partition(":")[0].partition(" (")[0] for line in lines] == [
        "pretrain on CPUs like this one's",
        "finetune on CPUs like this one's",
    ]
    assert all(
        "precision bf16: a step takes 100 ms in bf16 and 400 ms in fp32: 4.00 times as fast" in one for one in lines
    )
    findings = default_findings(store, gpus=False)
    assert sum("4.00 times as fast" in one.what for one in findings if one.subject == "speeds") == 2


def timed(model: Any, **fields: Any) -> Timed:
    return Timed(model, RECIPE | fields, 2, None, checkpointing=False)


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one in ("llama", "gpt2") else pytest.mark.slow) for one in CONFIGS],
)
def test_steps_of_every_family_can_be_timed(family: str) -> None:
    fp32, bf16 = time_precisions(timed(tiny_model(family).train()), lambda: None)
    assert fp32 > 0
    assert bf16 > 0


def test_timing_changes_neither_the_model_nor_random_numbers() -> None:
    model = tiny_model("llama").train()
    add_adapters(model, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}, 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    time_precisions(timed(model, dropout=0.1), lambda: None)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.get_submodule("model")._forward_hooks
    assert model.config._attn_implementation == "sdpa"


def test_the_time_of_a_step_grows_with_every_layer_alike() -> None:
    model = tiny_model("llama", num_hidden_layers=8)
    assert timed(model).whole([1.0, 2.0]) == pytest.approx(4.5)
    assert timed(tiny_model("llama", num_hidden_layers=1)).whole([1.0]) == 1.0


@pytest.mark.parametrize(("numbers", "rounds"), [(4_000_000, 2), (50_000, ROUNDS + 1)])
def test_a_precision_that_is_far_slower_is_timed_only_once_after_warming_up(numbers: int, rounds: int) -> None:
    calls = []

    def other() -> None:
        calls.append(sum(range(numbers)))

    taking_turns([[lambda: sum(range(200_000))], [other]], lambda: None, HOPELESS)
    assert len(calls) == rounds


def test_a_stop_signal_ends_the_measurement() -> None:
    def stop() -> None:
        raise AttemptStopped("TERM")

    with pytest.raises(AttemptStopped):
        time_precisions(timed(tiny_model("llama")), stop)


@pytest.mark.slow
def test_compiled_steps_are_timed_with_what_compiling_and_loading_take() -> None:
    found = time_compiled(timed(tiny_model("llama").train()), True, lambda: None)
    assert 0 < found["warm"] < found["cold"]
    assert found["step"] > 0
    assert found["uncompiled"] > 0


@pytest.mark.slow
def test_a_stage_of_minutes_compiles_once_to_measure_and_its_siblings_find_the_numbers(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    store = fresh(measured, tmp_path, fp32=1.0, bf16=1.0)
    train_here(measured[0], store)
    run = of_stage(store, "pretrain")
    found = [
        speeds["compiled"] for place in speeds_of(store) if (speeds := read_speeds(place)) and "compiled" in speeds
    ]
    (compiled,) = found  # fine-tuning has too few steps
    assert set(compiled) == {"fp32"}
    saved = (compiled["fp32"]["uncompiled"] - compiled["fp32"]["step"]) * 240
    assert chosen(run) == (False, saved > compiled["fp32"]["warm"])
    assert "compiles steps in fp32 to measure them" in run.log.read_text()
    train_here(measured[0], store, "seed=1")
    (sibling,) = (
        one for one in Store(store).runs() if one.spec()["recipe"]["seed"] == 1 and one.spec()["stage"] == "pretrain"
    )
    assert "compiles steps" not in sibling.log.read_text()
    assert chosen(sibling) == chosen(run)
