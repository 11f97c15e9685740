"""Exact resume: real processes, killed at every kind of moment, end in the bits of an undisturbed run."""

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from retain.launchers.checks.drill import compare, curve_points
from retain.launchers.planning.opened_study import open_study
from retain.results.store.curves import read_curves
from retain.results.store.runs import Run, Store
from tests.results.runs import put_state
from tests.retain import (
    losses,
    retain_here,
    retain_json,
    start,
    stop_here,
    train_here,
    train_killed,
    wait_until,
    weights,
)
from tests.studies import tiny_study

LONG: dict[str, Any] = {
    "pretrain.tokens": 19_200,
    "pretrain.dropout": 0.1,
    "grid": {"pretrain.exposure": [1]},
    "execution": {"save_steps": 5, "heldout_every": 8},
    "posttrain.dropout": 0.1,
    "posttrain.replay": 0.25,
    "posttrain.early_stopping": {"every": 6, "patience": 2},
    "finetune.anchor": {"l2sp": 0.01},
}
"""Seventy-five steps of pretraining and what else a state must remember: dropout, replay, early stopping, an anchor."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The long tiny study, and its undisturbed store with all states kept."""
    folder = tmp_path_factory.mktemp("calm")
    study = tiny_study(folder / "study", **LONG)
    train_here(study, folder / "runs", "execution.keep_states=true")
    return study, folder / "runs"


@pytest.mark.slow
@pytest.mark.parametrize(
    "execution",
    [
        ["execution.devices=1", "execution.precision=bf16"],
        ["execution.devices=2", "execution.strategy=fsdp", "execution.precision=bf16"],
        ["execution.devices=3", "pretrain.batch=9", "posttrain.batch=9", "finetune.batch=9"],
    ],
    ids=["one process in bf16", "FSDP in bf16", "DDP of three ranks in fp32"],
)
def test_drilled_runs_end_in_the_bits_of_their_undisturbed_twins(execution: list[str], tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", **LONG | {"finetune.anchor": {"l2sp": 0.01, "ewc": 10, "sequences": 16}})
    document = retain_json("drill", study, *execution, "--kills", "6", "--store", tmp_path / "runs")
    assert document["kills"] == 6
    assert document["differences"] == []
    assert document["attempts"] > document["runs_compared"]


@pytest.mark.slow
@settings(max_examples=3, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
@given(moments=st.lists(st.floats(0, 2.5), min_size=1, max_size=3), number=st.sampled_from(["KILL", "TERM"]))
def test_a_launcher_killed_at_random_times_loses_nothing(
    moments: list[float], number: str, calm: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    study, undisturbed = calm
    store = tmp_path_factory.mktemp("random") / "runs"
    for moment in moments:
        kill_after(moment, signal.Signals[f"SIG{number}"], study, store)
    train_here(study, store)
    assert weights(store) == weights(undisturbed)
    assert losses(store) == losses(undisturbed)
    assert_token_ranges_join(Store(store))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="stopped"),
        pytest.param(signal.SIGHUP, id="its terminal closed", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_from_the_step_at_which_it_was_stopped(
    number: signal.Signals, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    study, _ = calm
    store = stopped_midway(study, tmp_path / "runs", number)
    run = begun(store)
    attempt = run.state().attempts[0]
    assert (run.state().state, attempt.cause) == ("planned", number.name)
    assert attempt.tokens > 0
    train_here(study, store)
    assert run.state().attempts[1].tokens_at_start == attempt.tokens


def test_a_run_that_resumes_with_more_points_in_its_curves_times_its_own_steps_only(
    calm: tuple[Path, Path], tmp_path: Path
) -> None:
    study, _ = calm
    store = stop_here(study, tmp_path / "runs", "execution.log_every=1000")
    run = begun(store)
    train_here(study, store, "execution.log_every=1")
    resumed = run.state().attempts[1].tokens_at_start
    assert f"resumes after step {resumed // (8 * 32)}/" in run.log.read_text()
    assert min(tokens for tokens, _ in read_curves(run.folder)["pretrain/tokens_per_second"]) > resumed


@pytest.mark.slow
def test_curves_have_no_gap_and_no_overlap_after_several_attempts(calm: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = calm
    store = stop_here(study, tmp_path / "runs")
    train_killed(study, store)
    run = begun(store)
    assert len(run.state().attempts) >= 3
    assert len(list(run.folder.glob("events.*"))) == 1
    points = curve_points(run)
    assert points == curve_points(Run(undisturbed / run.key))
    assert points["pretrain/loss"] == sorted(points["pretrain/loss"])
    assert points["pretrain/loss"][-1][0] == run.state().progress.tokens


def truncate(state: Path) -> None:
    file = state / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip(state: Path) -> None:
    file = state / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_a_number(state: Path) -> None:
    file = state / "rank-00000.json"
    file.write_text(file.read_text().replace('"digest"', '"tsegid"'))


def lose_the_manifest(state: Path) -> None:
    (state / "state.json").unlink()


def empty_the_manifest(state: Path) -> None:
    (state / "state.json").write_text("")


HARMS = (truncate, flip, change_a_number, lose_the_manifest, empty_the_manifest)
QUICK = ((truncate, False), (flip, True))
"""What is done to the newest checkpoint, or to both, in the fast tests."""


@pytest.mark.parametrize(
    ("harm", "both"),
    [
        pytest.param(
            harm,
            both,
            id=f"{'both' if both else 'newest'}-{harm.__name__}",
            marks=() if (harm, both) in QUICK else pytest.mark.slow,
        )
        for both in (False, True)
        for harm in HARMS
    ],
)
def test_a_damaged_state_is_said_and_the_older_one_or_none_is_used(
    harm: Callable[[Path], None], both: bool, calm: tuple[Path, Path], tmp_path: Path, stopped: Path
) -> None:
    study, undisturbed = calm
    store = tmp_path / "runs"
    shutil.copytree(stopped, store, symlinks=True)
    run = begun(store)
    states = sorted(run.checkpoint.glob("step-*"))
    assert len(states) == 2
    for state in states if both else states[-1:]:
        harm(state)
    train_here(study, store)
    last = run.state().attempts[-1]
    assert last.note is not None
    assert f"{states[-1].name}" in last.note
    assert "damaged" in last.note
    assert ("the stage starts again" in last.note) == both
    older = int(states[0].name.removeprefix("step-")) * 8 * 32
    assert last.tokens_at_start == (0 if both else older)
    assert last.note in run.log.read_text().replace("\n", "; ") or both
    assert weights(store) == weights(undisturbed)
    assert retain_here("verify", "--store", store).returncode == 0


@pytest.fixture(scope="module")
def stopped(calm: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose first run was stopped midway, with two states."""
    return stop_here(calm[0], tmp_path_factory.mktemp("stopped") / "runs", checkpoints=2)


def test_verify_proves_the_tokens_of_a_state_and_of_a_done_run(calm: tuple[Path, Path], tmp_path: Path) -> None:
    _, undisturbed = calm
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    assert "0 problems" in retain_here("verify", "--store", store).stdout
    run = next(run for run in Store(store).runs() if run.spec()["stage"] == "posttrain")
    state = max(run.checkpoint.glob("step-*"))
    rank = json.loads((state / "rank-00000.json").read_text())
    rank["own"]["digest"] = f"{int(rank['own']['digest'], 16) ^ 1:032x}"
    (state / "rank-00000.json").write_text(json.dumps(rank))
    (problem,) = retain_json("verify", "--store", store, code=1)["problems"]
    assert problem["where"] == run.key
    assert f"step {int(state.name.removeprefix('step-'))}" in problem["what"]
    assert "are not those of its recipe" in problem["what"]


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [
        ("ddp", "execution.devices=1"),
        pytest.param("fsdp", "execution.devices=1", marks=pytest.mark.slow),
        pytest.param("ddp", "execution.devices=4", marks=pytest.mark.slow),
        pytest.param("fsdp", "execution.devices=4", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks_and_says_so(
    devices: str, strategy: str, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    study, undisturbed = calm
    store = stop_here(study, tmp_path / "runs", "execution.devices=2", f"execution.strategy={strategy}")
    train_here(study, store, devices, f"execution.strategy={strategy}")
    run = begun(store)
    first, second = run.state().attempts
    assert second.tokens_at_start == first.tokens > 0
    assert second.note is not None
    assert "same order of data, not bit-identical" in second.note
    for split, loss in run.losses()["splits"].items():
        assert loss["loss"] == pytest.approx(losses(undisturbed)[run.key]["splits"][split]["loss"], abs=0.05)
    assert run.losses()["token_digest"] == losses(undisturbed)[run.key]["token_digest"]
    assert "0 problems" in retain_here("verify", "--store", store).stdout


def test_states_go_once_a_run_is_done_and_two_are_kept_until_then(calm: tuple[Path, Path], stopped: Path) -> None:
    study, undisturbed = calm
    assert all(len(list(run.checkpoint.glob("step-*"))) == 2 for run in Store(undisturbed).runs())
    assert len(list(begun(stopped).checkpoint.glob("step-*"))) == 2
    freed = retain_json("gc", study, "--dry-run", "--store", undisturbed)
    assert freed["bytes"] > 0
    assert all(len(list(run.checkpoint.glob("step-*"))) == 2 for run in Store(undisturbed).runs())


def test_the_drill_finds_a_difference_where_there_is_one(calm: tuple[Path, Path], tmp_path: Path) -> None:
    study, undisturbed = calm
    store = tmp_path / "runs"
    shutil.copytree(undisturbed, store, symlinks=True)
    tree = open_study(str(study), (), undisturbed).tree
    assert compare(tree, Store(undisturbed), Store(store)) == []
    run = Store(store).runs()[0]
    state = run.state()
    put_state(run, replace(state, checksums=dict(state.checksums) | {"model/model.safetensors": "0" * 64}))
    points = Store(store).runs()[1].folder / "curves.jsonl"
    points.write_text("".join(points.read_text(encoding="utf-8").splitlines(keepends=True)[:-5]), encoding="utf-8")
    found = {(difference.key, difference.what) for difference in compare(tree, Store(undisturbed), Store(store))}
    assert (run.key, "model/model.safetensors") in found
    assert (Store(store).runs()[1].key, "curves") in found


def kill_after(moment: float, number: signal.Signals, study: Path, store: Path) -> None:
    """Send a signal to `retain run` some seconds after its first stage began, unless it ends by itself."""
    launcher = start("run", study, "--store", store)
    wait_until(lambda: any(run.is_running() for run in Store(store).runs()) or launcher.poll() is not None)
    time.sleep(moment)
    launcher.send_signal(number)
    launcher.communicate(timeout=60)
    wait_until(lambda: not any(run.is_running() for run in Store(store).runs()))


def stopped_midway(study: Path, store: Path, number: signal.Signals) -> Path:
    """Start `retain run` with a new store, stop it once its first stage has saved a state, and return the store."""
    launcher = start("run", study, "--store", store)
    wait_until(lambda: any(store.glob("*/checkpoint/step-*")) or launcher.poll() is not None)
    if number == signal.SIGHUP:  # every process of a terminal that closes hears it, from the shell and from the kernel
        os.killpg(launcher.pid, number)
        os.killpg(launcher.pid, number)
    else:
        launcher.send_signal(number)
    launcher.communicate(timeout=60)
    wait_until(lambda: not any(run.is_running() for run in Store(store).runs()))
    return store


def begun(store: Path) -> Run:
    """The first stage of the tree."""
    return next(run for run in Store(store).runs() if run.spec()["stage"] == "pretrain")


def assert_token_ranges_join(store: Store) -> None:
    """No token range is lost: each attempt begins where an earlier one had a state, the first one at 0."""
    for run in store.runs():
        attempts = run.state().attempts
        assert attempts[0].tokens_at_start == 0
        assert all(later.tokens_at_start <= earlier.tokens for earlier, later in itertools.pairwise(attempts))
