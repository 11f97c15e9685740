"""Runs that estimate the Fisher information for an anchor: their files, interruptions, and the stages that need them."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import retain
from retain.datamodules.order.stage_data import first_sequences
from retain.launchers.cli.app import main
from retain.launchers.jobs.branches import branch
from retain.launchers.jobs.sbatch import families
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.groundwork import fisher
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.lightning_modules.anchors.fisher import add_squares
from retain.lightning_modules.models import load_model
from retain.results.store.runs import Run, Store, sha256_of
from tests.results.runs import problems, put_state
from tests.studies import tiny_study

ANCHORED: dict[str, Any] = {
    "posttrain.method": "lora",
    "posttrain.lora": {"rank": 4, "alpha": 8},
    "finetune.anchor": {"sequences": 24, "ewc": 0},
    "grid": {"finetune.anchor.ewc": [0, 1, 1000]},
    "documents": {"attention": "within"},
    "execution": {"accelerator": "cpu", "save_minutes": 1e-6},
}
"""Post-training merges adapters and unties the head, and documents attend within themselves."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("fisher"), **ANCHORED)


@pytest.fixture(scope="module")
def trials(study: Path) -> list[dict[str, Any]]:
    results = retain.run(str(study), (), study.parent / "runs")
    assert not results.failures
    return results.trials


def estimate_of(store: Store) -> Run:
    (found,) = (run for run in store.runs() if run.spec()["kind"] == "fisher")
    return found


def test_an_estimate_is_trained_before_the_stages_that_need_it_and_is_no_trial(
    study: Path, trials: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(study.parent / "runs")
    run, plain, *pulled = estimate_of(store), *(trial["keys"]["finetune"] for trial in trials)
    assert [len(trial["keys"]) for trial in trials] == [3, 3, 3]
    assert all(set(trial["losses"]) == {"pretrain", "posttrain", "finetune"} for trial in trials)
    begun = {one.key: one.state().attempts[0].start for one in store.runs()}
    assert all(begun[key] > begun[run.key] for key in pulled)
    assert sorted(branch(store, run.key)) == sorted([run.key, *pulled])
    start = trials[0]["keys"]["posttrain"]
    assert branch(store, start)[0] == start
    assert [(family.stage, family.needs) for family in families(store, [run.key, plain, *pulled])] == [
        ("fisher", (start,)),
        ("finetune", (start,)),
        ("finetune", (start, run.key)),
    ]
    assert [one.state for one in retain.status(str(study), (), store.root).runs if one.stage == "fisher"] == ["done"]
    assert retain.plan(str(study), store=store.root).totals.to_train == 0
    assert (len(store.runs()), problems(store)) == (6, {})
    assert "its trace is" in run.log.read_text()
    assert main(["why", str(study), pulled[0], "--json", "--store", str(store.root)]) == 0
    assert json.loads(capsys.readouterr().out)["fields"]["finetune.anchor.fisher.sequences"] == 24
    assert main(["export", run.key, "--store", str(store.root)]) == 2
    assert f"the run is no model but a measurement of {start}; export that run" in capsys.readouterr().err


def test_an_estimate_is_that_of_the_weights_that_the_stage_starts_from(
    study: Path, trials: list[dict[str, Any]]
) -> None:
    store = Store(study.parent / "runs")
    run, start = estimate_of(store), store.run(trials[0]["keys"]["posttrain"])
    found = load_file(run.model / "fisher.safetensors")
    model = load_model(start.model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" in found
    # A row of the embedding: a token that no sequence has bears no information.
    sequences = first_sequences(store.root, run.spec()["recipe"])
    assert sequences.shape == (24, 32)
    absent = torch.ones(len(found["model.embed_tokens.weight"]), dtype=torch.bool)
    absent[sequences[:, :-1].unique()] = False
    assert absent.any()
    assert not found["model.embed_tokens.weight"][absent].any()
    assert found["model.embed_tokens.weight"][~absent].any(dim=1).all()

    def moved(trial: dict[str, Any]) -> float:
        """The distance of a trial's end from its start, by the information."""
        end = load_model(store.run(trial["keys"]["finetune"]).model)
        pairs = zip(model.named_parameters(), end.parameters(), strict=True)
        return sum((found[name] * (one - other) ** 2).sum().item() for (name, one), other in pairs)

    free, weak, strong = map(moved, trials)
    assert free > weak > 2 * strong


class Killed(BaseException):
    """What ends an attempt without a word."""


def test_an_estimate_that_dies_without_a_signal_continues_from_what_it_has_saved(
    study: Path, trials: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.parent / "runs", tmp_path / "runs", symlinks=True)
    run = estimate_of(Store(tmp_path / "runs"))
    whole = run.state()
    put_state(run, replace(whole, state="planned", checksums={}))

    def dying(*arguments: Any) -> Iterator[int]:
        for done in add_squares(*arguments):
            if done == 8:
                raise Killed
            yield done

    monkeypatch.setattr(fisher, "add_squares", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            make_attempt(Store(tmp_path / "runs"), run.key, Ranks(0, 1), StopRequest())
    monkeypatch.undo()
    make_attempt(Store(tmp_path / "runs"), run.key, Ranks(0, 1), StopRequest())
    state = run.state()
    assert [attempt.tokens_at_start // 32 for attempt in state.attempts[-3:]] == [0, 7, 14]
    assert (state.state, state.checksums) == ("done", whole.checksums)


def test_an_interrupted_estimate_starts_again_if_its_stage_has_other_weights(
    study: Path, trials: list[dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(study.parent / "runs", tmp_path / "runs", symlinks=True)
    store = Store(tmp_path / "runs")
    run = estimate_of(store)
    put_state(run, replace(run.state(), state="planned", checksums={}))
    stop = StopRequest()
    stop.signal = "SIGTERM"
    with pytest.raises(AttemptStopped):
        make_attempt(store, run.key, Ranks(0, 1), stop)
    assert run.state().progress.tokens > 0
    parent = store.run(run.spec()["parent"])
    (weights,) = parent.model.glob("*.safetensors")
    save_file({name: one + 0.01 for name, one in load_file(weights).items()}, weights, {"format": "pt"})
    new = parent.state().checksums | {f"model/{weights.name}": sha256_of(weights)}
    put_state(parent, replace(parent.state(), checksums=new))
    make_attempt(store, run.key, Ranks(0, 1), StopRequest())
    assert run.state().attempts[-1].tokens_at_start == 0


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "with damaged sums"])
def test_an_interrupted_estimate_continues_to_the_same_bits(
    damaged: bool, study: Path, trials: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.parent / "runs", tmp_path / "runs", symlinks=True)
    run = estimate_of(Store(tmp_path / "runs"))
    whole = run.state()
    shutil.rmtree(run.model)
    put_state(run, replace(whole, state="planned", checksums={}))
    stop = StopRequest()

    def stopping(*arguments: Any) -> Iterator[int]:
        for done in add_squares(*arguments):
            stop.signal = "SIGTERM" if done == 7 else None
            yield done

    monkeypatch.setattr(fisher, "add_squares", stopping)
    for done in (7, 14, 21):
        with pytest.raises(AttemptStopped):
            make_attempt(Store(tmp_path / "runs"), run.key, Ranks(0, 1), stop)
        assert run.state().state == "planned"
        assert run.state().progress.tokens == done * 32
        stop.signal = None
    monkeypatch.undo()
    if damaged:
        saved = run.checkpoint / "sums.safetensors"
        content = bytearray(saved.read_bytes())
        content[-9] ^= 1
        saved.write_bytes(content)
    make_attempt(Store(tmp_path / "runs"), run.key, Ranks(0, 1), stop)
    state = run.state()
    assert (state.state, state.checksums) == ("done", whole.checksums)
    assert [attempt.tokens_at_start // 32 for attempt in state.attempts[-4:]] == [0, 7, 14, 0 if damaged else 21]
    assert not run.checkpoint.exists()
