"""`retain cancel` stops what `retain run` trains, whose other branches go on."""

from collections.abc import Mapping
from pathlib import Path

from retain.results.store.runs import Store
from retain.results.store.state import State
from tests.retain import retain_here, start, train_here
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
