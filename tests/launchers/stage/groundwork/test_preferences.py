"""Studies that learn from pairs, from the command's end: references made once, exact resume, and what results say of pairs."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import retain
from retain.datamodules.order.stage_data import heldout_pairs
from retain.launchers.cli.app import main
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.groundwork import reference
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.lightning_modules.models import load_model
from retain.lightning_modules.preferences.dpo import log_probabilities, margins
from retain.results.store.garbage import find_waste
from retain.results.store.runs import Run, Store
from tests.datamodules.corpora.preferences.made_pairs import pair_study
from tests.results.runs import put_state
from tests.retain import losses, train_here, weights

CHAIN: dict[str, Any] = {
    "stages": ["pretrain", "posttrain", "dpo", "finetune"],
    "pretrain.exposure": 0.5,
    "posttrain.corpus": "pairs",
    "dpo": {
        "corpus": "pairs",
        "tokens": 5760,
        "max_tokens": 9600,
        "lr": 1e-3,
        "batch": 8,
        "dropout": 0.1,
        "early_stopping": {"every": 5, "patience": 9, "split": "tune"},
        "objective": {"dpo": 0.1},
    },
    "finetune": {"corpus": "general", "tokens": 1920, "lr": 1e-3, "batch": 8},
    "documents": {"attention": "within"},
    "grid": {"dpo.objective.dpo": [0.1, 1]},
    "execution": {"accelerator": "cpu", "save_steps": 3, "keep_states": True, "heldout_every": 10, "micro_batch": 5},
}
"""Supervised fine-tuning on chosen responses, which pretraining has seen a half of; DPO in passes; other text afterwards."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_study(tmp_path_factory.mktemp("pairs"), **CHAIN)


@pytest.fixture(scope="module")
def trials(study: Path) -> list[dict[str, Any]]:
    results = retain.run(str(study), (), study.parent / "runs")
    assert not results.failures
    return results.trials


@pytest.fixture
def store(study: Path, trials: list[dict[str, Any]], tmp_path: Path) -> Store:
    """A copy of the trained store."""
    shutil.copytree(study.parent / "runs", tmp_path / "runs", symlinks=True)
    return Store(tmp_path / "runs")


def reference_of(store: Store) -> Run:
    (found,) = (run for run in store.runs() if run.spec()["kind"] == "reference")
    return found


def test_two_strengths_share_one_reference_that_is_made_once_before_them(
    study: Path, trials: list[dict[str, Any]]
) -> None:
    store = Store(study.parent / "runs")
    run = reference_of(store)
    learners = {trial["keys"]["dpo"] for trial in trials}
    assert len(learners) == 2
    assert run.spec()["parent"] == trials[0]["keys"]["posttrain"]
    assert len(run.state().attempts) == 1
    ended = run.state().attempts[0].end
    assert ended is not None
    assert all(store.run(key).state().attempts[0].start >= ended for key in learners)
    assert retain.plan(str(study), store=store.root).totals.to_train == 0


def test_a_reference_has_the_log_probabilities_of_the_start(study: Path, trials: list[dict[str, Any]]) -> None:
    store = Store(study.parent / "runs")
    run, start = reference_of(store), store.run(trials[0]["keys"]["posttrain"])
    found = load_file(run.model / "reference.safetensors")
    pairs, numbers = heldout_pairs(store.root, run.spec()["recipe"]["corpus"])
    assert found["heldout"].shape == (len(numbers), 2)
    model, alone = load_model(start.model), pairs[:4]
    alone_p = log_probabilities(model, alone)
    torch.testing.assert_close(found["heldout"][:2].flatten(), alone_p, rtol=1e-4, atol=1e-4)


def test_results_say_what_each_stage_prefers_wherever_losses_are(
    study: Path, trials: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(study.parent / "runs")
    weak, strong = (trial["measures"] for trial in trials)
    names = ["pairs/dpo_loss", "pairs/accuracy", "pairs/margin"]
    assert [list(weak[stage]) for stage in weak] == [[], [], names, names]
    assert weak["dpo"]["pairs/accuracy"] > 0.8
    assert weak["dpo"]["pairs/margin"] > 0
    assert strong["dpo"]["pairs/dpo_loss"] < 0.69
    # The loss on the corpus is that of every stage: next tokens of the chosen responses.
    splits = store.run(trials[0]["keys"]["finetune"]).losses()["splits"]
    assert trials[0]["losses"]["finetune"]["pairs"] == splits["dpo"]["loss"] > 1
    assert trials[0]["retained_posttraining_loss"] == splits["posttraining"]["loss"] > 1
    arguments = [
        "results",
        str(study),
        "--losses",
        "dpo/pairs/accuracy,finetune/pairs/margin",
        "--store",
        str(store.root),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "dpo/pairs/accuracy" in printed
    assert "held-out pairs" in printed
    frame = retain.load(str(study), store.root)
    assert list(frame["dpo/pairs/accuracy"]) == [weak["dpo"]["pairs/accuracy"], strong["dpo"]["pairs/accuracy"]]
    curves = {
        json.loads(line)["curve"] for line in (store.run(trials[0]["keys"]["dpo"]).folder / "curves.jsonl").open()
    }
    assert "heldout/dpo-tune-dpo" in curves


def test_measures_are_of_the_reported_half_and_can_be_computed_again(study: Path, trials: list[dict[str, Any]]) -> None:
    store = Store(study.parent / "runs")
    run = store.run(trials[0]["keys"]["dpo"])
    (corpus,) = run.losses()["preferences"]
    found = run.losses()["preferences"][corpus]
    pairs, numbers = heldout_pairs(store.root, corpus, "report")
    known = load_file(reference_of(store).model / "reference.safetensors")["heldout"][numbers].flatten()
    margin = margins(log_probabilities(load_model(run.model), pairs), known)
    assert found["pairs"] == len(numbers)
    assert found["margin"] == pytest.approx(margin.mean().item(), rel=1e-3)
    assert found["accuracy"] == pytest.approx((margin > 0).double().mean().item(), abs=1e-6)
    assert (found["beta"], found["reference"]) == (0.1, reference_of(store).key)


def test_a_stopped_stage_resumes_to_the_same_bits(study: Path, store: Store, trials: list[dict[str, Any]]) -> None:
    run = store.run(trials[0]["keys"]["dpo"])
    whole = weights(store.root), losses(store.root)
    shutil.rmtree(run.model)
    (run.folder / "losses.json").unlink()
    put_state(run, replace(run.state(), state="planned", checksums={}))
    # A state in the middle of the stage, after some steps since the last evaluation.
    newest = max(run.checkpoint.glob("step-*"))
    assert train_here(study, store.root)[run.key].state == "done"
    assert run.state().attempts[-1].tokens_at_start == int(newest.name.removeprefix("step-")) * 8 * 48 > 0
    assert (weights(store.root), losses(store.root)) == whole
    assert main(["verify", "--store", str(store.root)]) == 0


def test_an_interrupted_reference_continues_to_the_same_bits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = reference_of(store)
    whole = run.state()
    shutil.rmtree(run.model)
    put_state(run, replace(whole, state="planned", checksums={}))
    stop, blocks = StopRequest(), reference._blocks
    # In every attempt, a signal comes in the second forward pass.

    def stopping(*arguments: Any) -> Iterator[Any]:
        for number, block in enumerate(blocks(*arguments)):
            stop.signal = "SIGTERM" if number == 1 else None
            yield block

    monkeypatch.setattr(reference, "_blocks", stopping)
    for attempt in (1, 2):
        with pytest.raises(AttemptStopped):
            make_attempt(store, run.key, Ranks(0, 1), stop)
        assert run.state().progress.tokens == attempt * 2 * 8 * 2 * 48
        stop.signal = None
    monkeypatch.undo()
    make_attempt(store, run.key, Ranks(0, 1), stop)
    assert (run.state().state, run.state().checksums) == ("done", whole.checksums)
    assert not run.checkpoint.exists()


def test_gc_keeps_what_later_stages_are_measured_by(study: Path, trials: list[dict[str, Any]]) -> None:
    store = Store(study.parent / "runs")
    freed = {waste.run for waste in find_waste(store, None, weights=True)}
    assert trials[0]["keys"]["posttrain"] in freed
    assert reference_of(store).key not in freed


def test_averages_are_measured_on_pairs(store: Store, study: Path, trials: list[dict[str, Any]]) -> None:
    halves = ("dpo.early_stopping.split=heldout", "dpo.objective.dpo=1", "finetune.average=[0.5,1]")
    results = retain.run(str(study), halves, store.root)
    assert not results.failures
    half, end = (trial["measures"]["finetune"] for trial in results.trials)
    assert half.keys() == end.keys() == {"pairs/dpo_loss", "pairs/accuracy", "pairs/margin"}
    assert None not in half.values()
    assert half != end


class StopAtSecondLook(StopRequest):
    """Has a signal from the second time on that somebody asks for it."""

    looks = 0

    @property  # type: ignore[override]
    def signal(self) -> str | None:
        self.looks += 1
        return "SIGUSR2" if self.looks > 1 else None

    @signal.setter
    def signal(self, name: str | None) -> None:
        pass


def test_a_measurement_on_pairs_that_is_stopped_in_every_batch_ends_in_the_same_bits(store: Store, study: Path) -> None:
    averaged = ("dpo.early_stopping.split=heldout", "dpo.objective.dpo=1", "finetune.average=0.5")
    assert not retain.run(str(study), averaged, store.root).failures
    run = next(run for run in store.runs() if "preferences" in run.spec()["recipe"])
    whole = run.state()
    put_state(run, replace(whole, state="planned", checksums={}))
    while not run.is_done():
        with contextlib.suppress(AttemptStopped):
            make_attempt(store, run.key, Ranks(), StopAtSecondLook())
    starts = [attempt.tokens_at_start // 48 for attempt in run.state().attempts[1:]]
    assert starts == [0, 16, 25, 33, 41, 49]  # 25 sequences, and then the 25 pairs
    assert run.state().progress.tokens // 48 == 50
    assert run.state().checksums == whole.checksums


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(strategy: str, tmp_path: Path) -> None:
    study = pair_study(tmp_path / "study", **{"finetune.batch": 6, "grid": {}})
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(study, one)
    states = train_here(study, two, "execution.devices=2", f"execution.strategy={strategy}", "execution.micro_batch=2")
    assert {state.state for state in states.values()} == {"done"}
    for key, expected in losses(one).items():
        found = losses(two)[key]
        assert found["token_digest"] == expected["token_digest"]
        for corpus, pairs in expected.get("preferences", {}).items():
            for name in ("dpo_loss", "margin"):
                assert found["preferences"][corpus][name] == pytest.approx(pairs[name], rel=1e-3)


def test_adapters_start_at_the_reference(tmp_path: Path) -> None:
    study = pair_study(tmp_path, **{"grid": {}, "finetune.method": "lora", "finetune.lora": {"rank": 4, "alpha": 8}})
    (trial,) = retain.run(str(study), (), tmp_path / "runs").trials
    run = Store(tmp_path / "runs").run(trial["keys"]["finetune"])
    points = [json.loads(line) for line in (run.folder / "curves.jsonl").open()]
    first = next(point["value"] for point in points if point["curve"] == "finetune/loss")
    assert first == pytest.approx(0.6931, abs=1e-3)
    assert trial["measures"]["finetune"]["pairs/margin"] > 0
