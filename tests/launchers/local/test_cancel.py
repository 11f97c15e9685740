"""`retain cancel` stops what `retain run` trains, whose other branches go on."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.local import launcher
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.stage import linear
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from tests.disks import small_disk_at
from tests.retain import retain_here, start, train_here, wait_until
from tests.studies import SECOND, linear_study, tiny_study

LONG = {"posttrain.tokens": 20_480, "posttrain.max_tokens": 61_440, "grid": {"pretrain.exposure": [0, 1]}}


def test_a_cancelled_run_stops_with_a_checkpoint_and_is_resumed_from_it_when_it_is_retried(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path, **LONG), tmp_path / "runs"
    cancelled = list[str]()

    def cancel_one(states: Mapping[str, State]) -> None:
        for key, state in states.items():
            if not cancelled and state.progress.tokens and Store(store).run(key).spec()["stage"] == "posttrain":
                cancelled.append(key)
                assert "2 runs cancelled" in retain_here("cancel", key, "--store", store).stdout

    train_here(study, store, watch=cancel_one)
    run = Store(store).run(cancelled[0])
    assert run.state().state == "cancelled"
    assert run.state().attempts[-1].cause == "SIGUSR1"
    assert run.checkpoint.exists()
    assert run.state().progress.tokens < 61_440
    assert sorted(one.state().state for one in Store(store).runs()) == ["cancelled"] * 2 + ["done"] * 4
    retain_here("retry", cancelled[0], "--store", store, code=None)
    assert {state.state for state in train_here(study, store).values()} == {"done"}
    assert run.state().attempts[-1].tokens_at_start > 0


def test_a_command_whose_study_is_cancelled_ends_soon(tmp_path: Path) -> None:
    study, store = linear_study(tmp_path, grid={}, **{"pretrain.time": 0.01 * 600 * SECOND}), tmp_path / "runs"
    process = start("run", study, "--store", store)
    assert process.stderr is not None
    while "running" not in process.stderr.readline():
        assert process.poll() is None
    assert "3 runs cancelled" in retain_here("cancel", study, "--store", store).stdout
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output + errors
    assert {run.state().state for run in Store(store).runs()} == {"cancelled"}


def test_cancel_on_a_full_disk_promises_nothing_of_slurm_on_a_machine_without_it(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "disk", 16) as disk:
        opened = prepare_study(str(linear_study(tmp_path, grid={})), (), disk / "runs")
        register(opened.tree, opened.file, opened.facts, opened.store)
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        command = ("cancel", opened.file.path, "--store", disk / "runs")
        said = retain_here(*command, code=3, more={"PATH": os.devnull}).stderr
    assert "3 of 3 runs cannot be marked as cancelled; free space, then cancel again" in said


def test_a_run_that_is_cancelled_and_retried_at_once_keeps_its_result(tmp_path: Path) -> None:
    study, store = linear_study(tmp_path, grid={}, **{"pretrain.time": 0.01 * SECOND}), tmp_path / "runs"
    retried = list[str]()

    def cancel_and_retry(states: Mapping[str, State]) -> None:
        if not retried and "running" in {state.state for state in states.values()}:
            retried.extend(key for key in states if Store(store).run(key).cancel("by a test"))
            assert all(Store(store).run(key).retry() for key in retried)

    assert {state.state for state in train_here(study, store, watch=cancel_and_retry).values()} == {"done"}
    assert len(retried) == 3
    assert [len(run.state().attempts) for run in Store(store).runs()] == [1] * 3


def test_a_run_that_is_cancelled_before_it_begins_starts_no_process(tmp_path: Path) -> None:
    study = linear_study(tmp_path, grid={"seed": [0, 1]}, **{"execution.parallel": 1, "pretrain.time": 0.01 * SECOND})
    store, cancelled = tmp_path / "runs", list[str]()

    def cancel_the_waiting(states: Mapping[str, State]) -> None:
        if not cancelled and "running" in {state.state for state in states.values()}:
            keys = [run.key for run in Store(store).runs() if run.spec()["stage"] == "pretrain"]
            cancelled.extend(key for key in keys if states[key].state == "planned")
            assert Store(store).run(cancelled[0]).cancel("by a test")

    states = train_here(study, store, watch=cancel_the_waiting)
    assert states[cancelled[0]].state == "cancelled"
    assert not Store(store).run(cancelled[0]).log.exists()
    assert sorted(state.state for state in states.values()) == ["cancelled"] + ["done"] * 3 + ["planned"] * 2


@pytest.mark.parametrize("next_too", [False, True])
def test_a_pack_goes_on_when_a_run_is_cancelled_after_its_last_step(
    next_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"execution.parallel": 1, "execution.stages": {"finetune": {"pack": 3}}}
    study = linear_study(tmp_path, grid={"finetune.lr": [0.01, 0.011, 0.012]}, **fields)
    begun, log_whole, check_room = list[str](), linear.log_whole, linear.check_room

    def cancel(run: Run) -> None:
        """Cancel the run of this process, and wait until the launcher has told the process."""
        assert run.cancel("by a test")
        stop = signal.getsignal(CANCEL_SIGNAL).__self__  # type: ignore[union-attr]
        wait_until(lambda: stop.signal is not None)

    def after_the_last_step(store: Store, run: Run, *others: Any) -> None:
        log_whole(store, run, *others)
        if begun == [run.key]:
            cancel(run)

    def after_the_beginning(folder: Path, size: int) -> None:
        check_room(folder, size)
        if Run(folder).spec()["stage"] == "finetune":
            begun.append(folder.name)
            if next_too and len(begun) == 2:
                cancel(Run(folder))

    # Forked from this process, workers have its changes.
    monkeypatch.setattr(linear, "log_whole", after_the_last_step)
    monkeypatch.setattr(linear, "check_room", after_the_beginning)
    monkeypatch.setattr(launcher, "fork_server", lambda modules: multiprocessing.get_context("fork"))
    monkeypatch.setattr(launcher, "start", lambda process: process.start())
    train_here(study, tmp_path / "runs")
    runs = [run for run in Store(tmp_path / "runs").runs() if run.spec()["stage"] == "finetune"]
    first, second, third = sorted((run.state() for run in runs), key=lambda state: state.attempts[0].start)
    assert first.state == third.state == "done"
    assert second.state == ("cancelled" if next_too else "done")
    assert second.attempts[0].cause == ("SIGUSR1" if next_too else "finished")
    assert first.attempts[0].pid == second.attempts[0].pid
