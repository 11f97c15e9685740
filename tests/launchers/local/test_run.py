"""`retain run` with real processes that are really killed."""

import signal
from pathlib import Path

import pytest

from retain.results.store.runs import Store
from tests.conftest import Trained
from tests.retain import losses, retain, retain_here, retain_json, start, train_here, wait_until, weights
from tests.studies import SECOND, linear_study, tiny_study


def test_run_trains_every_stage_and_prints_a_row_per_trial_and_where_the_figure_is(trained: Trained) -> None:
    printed = trained.output.stdout
    assert printed.count("\n0") + printed.count("\n1") >= 4
    for name in ("losses.csv", "losses.png", "losses.svg", "tensorboard"):
        assert (trained.store / "studies" / "tiny" / name).exists()
        assert name in printed
    rows = retain_json("results", trained.study, "--store", trained.store)["trials"]
    assert len(rows) == 4
    assert all(row[name] > 0 for row in rows for name in row if name.endswith("_loss"))
    assert {key for row in rows for key in row["keys"].values()} == {run.key for run in Store(trained.store).runs()}


def test_a_second_run_trains_nothing_and_prints_the_same_results(trained: Trained) -> None:
    before = {run.key: run.state() for run in Store(trained.store).runs()}
    again = retain("run", trained.study, "--store", trained.store)
    assert again.stdout == trained.output.stdout
    assert {run.key: run.state() for run in Store(trained.store).runs()} == before


SECONDS = {"pretrain.time": 0.005 * SECOND, "finetune.time": 0.001 * SECOND}
"""Pretrainings of a linear study that take half a second, and are killed; shorter fine-tunings."""


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A linear study that takes seconds, and its undisturbed store."""
    folder = tmp_path_factory.mktemp("linear")
    study = linear_study(folder, **SECONDS)
    train_here(study, folder / "runs")
    return study, folder / "runs"


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGTERM))],
)
def test_a_killed_command_resumes_and_ends_in_the_same_bits(
    number: signal.Signals, linear: tuple[Path, Path], tmp_path: Path
) -> None:
    study, undisturbed = linear
    store = tmp_path / "runs"
    launcher = start("run", study, "--store", store)
    wait_until(lambda: any(run.state().state == "running" for run in Store(store).runs()), launcher)
    launcher.send_signal(number)
    launcher.wait(timeout=30)
    assert launcher.returncode in (130, -number)
    wait_until(lambda: not any(run.is_running() for run in Store(store).runs()))
    assert len(weights(store)) < len(weights(undisturbed))
    kept = [run.key for run in Store(store).runs() if run.is_done()]
    train_here(study, store)
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)
    assert all(len(Store(store).run(key).state().attempts) == 1 for key in kept)


@pytest.mark.parametrize("kind", ["linear", pytest.param("tiny", marks=pytest.mark.slow)])
def test_two_commands_on_another_store_train_each_stage_once_with_the_same_bits(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # Another folder for the study too: a path never decides a weight.
    elsewhere, store = tmp_path / "elsewhere", tmp_path / "runs"
    if kind == "linear":
        study, undisturbed = linear_study(elsewhere, **SECONDS), request.getfixturevalue("linear")[1]
    else:
        study, undisturbed = tiny_study(elsewhere), request.getfixturevalue("trained").store
    both = [start("run", study, "--store", store) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0], both[0].stderr and both[0].stderr.read()
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)
    assert [len(run.state().attempts) for run in Store(store).runs()] == [1] * len(Store(store).runs())


def test_a_failing_stage_stops_its_own_branch_and_the_table_says_which_and_why(tmp_path: Path) -> None:
    study, store = linear_study(tmp_path, **{"posttrain.time": 500}), tmp_path / "runs"
    rates = "posttrain.lr=[0.01, 5]"
    failed = retain_here("run", study, rates, "--store", store, code=1)
    assert "failed: posttrain" in failed.stderr
    assert "diverged" in failed.stderr
    assert "lower lr" in failed.stderr
    states = {run["key"]: run for run in retain_json("status", study, rates, "--store", store)["runs"]}
    ended = sorted(run["state"] for run in states.values() if run["stage"] == "posttrain")
    assert ended == ["done", "done", "failed", "failed"]
    waiting = [run for run in states.values() if run["stage"] == "finetune" and run["state"] != "done"]
    assert len(waiting) == 4
    assert all(run["reason"].startswith("blocked: posttrain") and "diverged" in run["reason"] for run in waiting)
    rows = retain_json("results", study, rates, "--store", store)["trials"]
    assert sum(row["finetuning_loss"] is not None for row in rows) == 4


def test_two_ranks_see_the_same_data_and_reach_the_same_losses_as_one(trained: Trained, tmp_path: Path) -> None:
    train_here(trained.study, tmp_path / "runs", "execution.devices=2", "execution.micro_batch=3")
    one, two = losses(trained.store), losses(tmp_path / "runs")
    assert one.keys() == two.keys()
    for key in one:
        for split, loss in one[key]["splits"].items():
            assert two[key]["splits"][split]["tokens"] == loss["tokens"]
            assert two[key]["splits"][split]["loss"] == pytest.approx(loss["loss"], abs=2e-3)
