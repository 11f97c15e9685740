"""Stages with other schedules, optimisers and early stopping than the defaults, through the launcher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import retain
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.planning.opened_study import open_study
from retain.lightning_modules.models import load_model
from retain.lightning_modules.objective import heldout_loss
from retain.results.store.curves import read_curves
from retain.results.store.runs import Store
from tests.results.runs import of_stage, set_back
from tests.retain import losses, retain_here, train_here, train_killed, weights
from tests.studies import documents_of, tiny_study

CHOSEN: dict[str, Any] = {
    "grid": {},
    "pretrain.exposure": 1,
    "pretrain.dropout": 0.1,
    "pretrain.optimizer": "muon",
    "pretrain.schedule": {"wsd": 0.25},
    "posttrain.schedule": "linear",
    "posttrain.min_lr": 2e-3,
    "posttrain.floor": "rise",
    "posttrain.decay": "all",
    "posttrain.early_stopping": {"every": 1, "patience": 3, "after_warmup": True, "split": "tune"},
    "finetune.optimizer": "muon",
    "finetune.decay": "all",
    "execution": {"save_steps": 3, "keep_states": True},
}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study, and its undisturbed store with all states kept."""
    folder = tmp_path_factory.mktemp("chosen")
    study = tiny_study(folder / "study", **CHOSEN)
    states = train_here(study, folder / "runs")
    assert {state.state for state in states.values()} == {"done"}
    return study, folder / "runs"


def test_wsd_muon_and_a_tune_split_resume_to_the_same_bits(chosen: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = chosen
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    begun = {stage: set_back(of_stage(store, stage)) for stage in ("pretrain", "posttrain", "finetune")}
    train_here(study, store)
    assert {stage: of_stage(store, stage).state().attempts[-1].tokens_at_start for stage in begun} == begun
    assert min(begun.values()) > 0
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)
    assert "0 problems" in retain_here("verify", "--store", store).stdout


@pytest.mark.slow
def test_a_killed_muon_run_resumes_to_the_same_bits(chosen: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = chosen
    store = tmp_path / "runs"
    train_killed(study, store)
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)


def test_a_checkpoint_holds_muons_momentum_of_matrices_and_adamws_moments_of_the_rest(
    chosen: tuple[Path, Path],
) -> None:
    state = max(of_stage(chosen[1], "pretrain").checkpoint.glob("step-*"))
    with safe_open(state / "rank-00000.safetensors", "np") as file:
        names = list(file.keys())
    trained = {name.removeprefix("model/") for name in names if name.startswith("model/")}
    muon = {name.removeprefix("muon/").removesuffix("/momentum_buffer") for name in names if name.startswith("muon/")}
    adamw = {name.removeprefix("adamw/").rpartition("/")[0] for name in names if name.startswith("adamw/")}
    assert muon | adamw == trained
    assert muon == {name for name in trained if "proj" in name}


def test_the_learning_rates_of_a_run_are_those_of_its_schedule(chosen: tuple[Path, Path]) -> None:
    rates = read_curves(of_stage(chosen[1], "pretrain").folder)["pretrain/learning_rate"]
    recipe = of_stage(chosen[1], "pretrain").spec()["recipe"]
    steps = recipe["steps"]
    assert recipe["schedule"] == {"wsd": steps // 4}
    by_step = {tokens // (8 * 32): rate for tokens, rate in rates}
    decay = steps // 4
    for step, rate in by_step.items():
        left = min(1.0, (steps - step) / decay)
        assert rate == pytest.approx(3e-3 * left if step > 5 else 3e-3 * step / 6, abs=1e-12)


def test_the_reported_loss_is_on_the_half_of_the_heldout_split_that_early_stopping_has_not_seen(
    chosen: tuple[Path, Path],
) -> None:
    store = chosen[1]
    run, leaf = of_stage(store, "posttrain"), of_stage(store, "finetune")
    music = run.spec()["recipe"]["corpus"]
    whole = heldout_sequences(store, music)
    tune, report = (heldout_sequences(store, music, half) for half in ("tune", "report"))
    assert len(tune) == len(whole) // 2
    assert sorted(map(tuple, [*tune.tolist(), *report.tolist()])) == sorted(map(tuple, whole.tolist()))
    found = run.losses()
    for split, half in (("posttraining", report), ("posttraining-tune", tune)):
        measured = heldout_loss(load_model(run.model), half, torch.device("cpu"), bf16=False).loss
        assert found["splits"][split]["loss"] == pytest.approx(measured, rel=1e-5)
    assert found["best_loss"] == found["splits"]["posttraining-tune"]["loss"]
    assert (found["splits"]["posttraining"]["half"], found["splits"]["posttraining-tune"]["half"]) == ("report", "tune")
    # The retained loss is on the same half, and no other corpus is halved.
    measured = heldout_loss(load_model(leaf.model), report, torch.device("cpu"), bf16=False).loss
    assert leaf.losses()["splits"]["posttraining"]["loss"] == pytest.approx(measured, rel=1e-5)
    assert [split for split, loss in leaf.losses()["splits"].items() if "half" in loss] == ["posttraining"]
    tree = open_study(str(chosen[0]), (), store).tree
    assert len(tree.trials) == 1
    assert Store(store).run(tree.trials[0].leaf).key == leaf.key


def test_the_stage_was_stopped_on_the_tune_half(chosen: tuple[Path, Path]) -> None:
    run = of_stage(chosen[1], "posttrain")
    curves = read_curves(run.folder)
    assert "heldout/posttraining" not in curves
    curve = dict(curves["heldout/posttraining-tune"])
    assert run.losses()["best_loss"] == min(curve.values())
    recipe = json.loads((run.folder / "stage.json").read_text())["recipe"]
    assert recipe["early_stopping"] == {"every": 1, "patience": 3, "after_warmup": True, "split": "tune"}


def test_a_stage_is_refused_before_it_trains_if_nothing_is_predicted_in_a_half_of_its_heldout_split(
    tmp_path: Path,
) -> None:
    tasks = {"files": "tasks.jsonl", "prompt": "{text}", "response": "{answer}", "heldout": {"files": "held.jsonl"}}
    one_step = {"pretrain.tokens": 256, "pretrain.warmup": 0, "posttrain.tokens": 256, "posttrain.max_tokens": None}
    stopping = {"posttrain.early_stopping": {"every": 1, "patience": 1, "split": "tune"}, "posttrain.warmup": 0}
    study = tiny_study(tmp_path, **one_step, **stopping, **{"corpora.music": tasks, "grid": {}})
    # The held-out task takes two sequences, and its response is in the second one.
    for name, documents in (("tasks", documents_of("music")[1:]), ("held", documents_of("music")[:1])):
        lines = [json.dumps({"text": document, "answer": document[:20]}) for document in documents]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (failure,) = retain.run(str(study), (), tmp_path / "runs").failures
    assert failure.reason == (
        "bad recipe: posttraining-tune: no token of this half of the held-out split is predicted; raise heldout of its "
        "corpus, or write early_stopping.split: heldout"
    )


def test_a_stage_whose_last_step_diverges_has_diverged(tmp_path: Path) -> None:
    one_step = {"pretrain.tokens": 256, "pretrain.warmup": 0, "pretrain.lr": 1e38, "grid": {}}
    execution = {"accelerator": "cpu", "precision": "fp32", "compile": False}
    study = tiny_study(tmp_path, **one_step, execution=execution)
    (failure,) = retain.run(str(study), (), tmp_path / "runs").failures
    assert str(failure.reason).startswith("diverged: the held-out loss on pretraining is nan at step 1; lower lr")


def test_muon_is_refused_with_sharding_and_with_adapters_before_anything_starts(
    chosen: tuple[Path, Path], tmp_path: Path
) -> None:
    sharded = ("execution.devices=2", "execution.strategy=fsdp", "--store", tmp_path / "runs")
    said = retain_here("run", chosen[0], *sharded, code=2).stderr
    assert "pretrain.optimizer: muon takes whole matrices" in said.replace("\n", " ")
    assert "write strategy: ddp, or optimizer: adamw" in said.replace("\n", " ")
    said = retain_here("plan", chosen[0], "finetune.method=lora", "--store", tmp_path / "runs", code=2).stderr
    assert "finetune.optimizer: muon takes whole weight matrices" in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetune.schedule={wsd: 0.01}", "finetune.schedule: 0.01 of 20 steps rounds to no step of decay"),
        (
            "finetune.schedule={wsd: 0.95}",
            "finetune.schedule: 2 steps of warm-up and 19 of decay do not fit the 20 steps",
        ),
    ],
)
def test_a_decay_that_does_not_fit_its_stage_is_refused_when_it_is_planned(
    override: str, sentence: str, chosen: tuple[Path, Path], tmp_path: Path
) -> None:
    said = retain_here("plan", chosen[0], override, "--store", tmp_path / "runs", code=2).stderr
    assert sentence in said.replace("\n", " ")
