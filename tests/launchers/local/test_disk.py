"""A disk that fills: a small tmpfs stands for it."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from retain.results.store.runs import Store
from retain.results.store.state import State
from tests.disks import fill, small_disk_at
from tests.retain import retain, start, train_here, wait_until, weights
from tests.studies import SECOND, linear_study, tiny_study


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB."""
    with small_disk_at(tmp_path / "disk", 80) as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    # Long enough that pretraining is far from its end when the disk is full, on however busy a machine.
    longer = {"pretrain.tokens": 25_600, "pretrain.batch": 2, "execution": {"save_steps": 20}}
    study = tiny_study(tmp_path / "study", **longer, grid={"pretrain.exposure": [0]})
    store, filler = small_disk / "runs", small_disk / "filler"
    launcher = start("run", study, "execution.parallel=1", "--store", store)
    wait_until(lambda: any(store.glob("*/checkpoint/step-*")), launcher)
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 14):
            with contextlib.suppress(OSError):
                while stream.write(bytes(size)):
                    pass
    _, told = launcher.communicate(timeout=120)
    assert launcher.returncode in (1, 3), told
    assert "Traceback" not in told
    assert "free space and run it again" in told
    assert re.search("the last checkpoint is kept|the checkpoint of step [0-9]+ is kept", told)
    (run,) = [run for run in Store(store).runs() if run.checkpoint.exists()]
    assert not run.is_done()
    assert any(run.checkpoint.glob("step-*"))
    filler.unlink()
    retain("run", study, "execution.parallel=1", "--store", store)
    assert run.state().attempts[-1].tokens_at_start > 0
    retain("run", study, "--store", tmp_path / "calm")
    assert weights(store) == weights(tmp_path / "calm")


@pytest.mark.slow
def test_a_stage_that_would_not_fit_is_refused_before_it_starts(small_disk: Path, tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study")
    with (small_disk / "filler").open("wb") as stream:
        stream.write(bytes(60 * 10**6))
    refused = retain("run", study, "--store", small_disk / "runs", code=1)
    assert "are needed and" in refused.stderr
    assert "free space" in refused.stderr
    assert not any((small_disk / "runs").glob("*/checkpoint/step-*"))


@pytest.mark.slow
def test_a_stage_that_cannot_begin_on_a_full_disk_ends_its_branch_and_no_other_stage(
    small_disk: Path, tmp_path: Path
) -> None:
    study = tiny_study(tmp_path / "study", **{"pretrain.batch": 2, "grid": {"pretrain.tokens": [2_560, 25_600]}})
    store, overrides = small_disk / "runs", ("execution.parallel=2", "execution.save_minutes=60")
    told: list[str | None] = []

    def watch(states: Mapping[str, State]) -> None:
        short = sorted(states.values(), key=lambda state: state.state != "done")[0]
        told.extend(state.reason for state in states.values() if state.state == "failed")
        if told:
            (small_disk / "filler").unlink(missing_ok=True)
        elif short.state == "done":  # the stage below it begins next
            fill(small_disk)

    states = train_here(study, store, *overrides, watch=watch)
    assert sorted(state.state for state in states.values()) == ["done"] * 4 + ["failed"] + ["planned"]
    assert str(told[0]).startswith("disk full: ")
    states = train_here(study, store, *overrides)
    assert {state.state for state in states.values()} == {"done"}


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_does_not_stop_what_needs_no_room_meanwhile(
    small_disk: Path, tmp_path: Path
) -> None:
    study = linear_study(tmp_path / "study", **{"pretrain.time": 4 * SECOND * 0.01, "grid": {}})
    full: list[float] = []

    def watch(states: Mapping[str, State]) -> None:
        if not full and any(state.progress.tokens for state in states.values()):
            fill(small_disk)
            full.append(time.monotonic())
        elif full and time.monotonic() - full[0] > 2:
            (small_disk / "filler").unlink(missing_ok=True)

    states = train_here(study, small_disk / "runs", watch=watch)
    assert [state.state for state in states.values()] == ["done"] * 3
    assert [len(state.attempts) for state in states.values()] == [1] * 3
