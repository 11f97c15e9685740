"""Short siblings in one process: each is a run of its own, with the bits that it would have had alone."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retain.launchers.jobs.resources import as_executions, slurm_resources
from retain.launchers.jobs.sbatch import families, sbatch_script
from retain.launchers.jobs.submissions import new_submission, read_submission, submission_folder, write_submission
from retain.launchers.local import launcher, worker
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import WorkerGroup, train
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.speed.folder import FOLDER
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import CANCEL_SIGNAL, AttemptStopped, StopRequest
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, Progress, State
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.tree import expand
from tests.results.runs import put_state
from tests.retain import losses, train_here, weights
from tests.studies import linear_study, made_up_facts, tiny_fields, tiny_study

STUDY: dict[str, Any] = {
    "pretrain.dropout": 0.1,
    "posttrain.dropout": 0.1,
    "posttrain.replay": 0.25,
    "finetune.dropout": 0.1,
    "grid": {"pretrain.exposure": [1], "finetune.lr": [5e-4, 1e-3, 2e-3, 4e-3]},
    "execution": {"parallel": 1, "save_steps": 5, "stages": {"finetune": {"pack": 3}}},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the study with a process for each stage."""
    folder = tmp_path_factory.mktemp("alone")
    train_here(tiny_study(folder / "study", **STUDY), folder / "runs", "execution.stages={}", "execution.parallel=2")
    return folder / "runs"


def with_parents(alone: Path, store: Path) -> Path:
    """A new store that has all but the fine-tunings."""
    shutil.copytree(alone, store)
    shutil.rmtree(store / "studies")  # they belong to the study file of the other store
    for run in Store(store).runs():
        if run.spec()["stage"] == "finetune":
            shutil.rmtree(run.folder)
    return store


def finetuned_by(store: Path) -> list[int]:
    """The processes of the last attempts of all fine-tunings, in the order of their beginning."""
    attempts = [run.state().attempts[-1] for run in Store(store).runs() if run.spec()["stage"] == "finetune"]
    return [attempt.pid for attempt in sorted(attempts, key=lambda attempt: attempt.start)]


def test_siblings_share_a_process_and_end_in_the_bits_of_processes_of_their_own(alone: Path, tmp_path: Path) -> None:
    store = with_parents(alone, tmp_path / "runs")
    states = train_here(tiny_study(tmp_path / "study", **STUDY), store)
    assert {state.state for state in states.values()} == {"done"}
    first, second, third, fourth = finetuned_by(store)
    assert first == second == third != fourth
    assert len(set(finetuned_by(alone))) == 4
    assert weights(store) == weights(alone)
    assert losses(store) == losses(alone)
    for run in Store(store).runs():
        assert len(list(run.folder.glob("events.*"))) == 1
        assert run.log.read_text().count(" begins\n") == 1


@pytest.mark.slow
def test_a_pack_that_is_killed_goes_on_with_the_one_that_was_trained_and_the_rest(alone: Path, tmp_path: Path) -> None:
    store = with_parents(alone, tmp_path / "runs")
    opened = prepare_study(str(tiny_study(tmp_path / "study", **STUDY)), (), store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    killed: list[str] = []

    def kill_the_second(teams: Mapping[str, WorkerGroup]) -> None:
        done = [run for run in opened.store.runs() if run.spec()["stage"] == "finetune" and run.is_done()]
        for key, team in teams.items():
            if len(done) == 1 and not killed and opened.store.run(key).checkpoint.exists():
                os.kill(pid := team.processes[0].pid or 0, signal.SIGSTOP)
                if opened.store.run(key).state().state == "running":
                    killed.append(key)
                os.kill(pid, signal.SIGKILL if killed else signal.SIGCONT)
        time.sleep(0.002)

    train(
        opened.tree,
        opened.store,
        local_slots(opened.file.study.execution, opened.file.study.stages),
        lambda _: None,
        kill_the_second,
    )
    attempts = {run.key: len(run.state().attempts) for run in opened.store.runs()}
    assert attempts == {key: 2 if key in killed else 1 for key in attempts}
    assert len(killed) == 1
    assert weights(store) == weights(alone)


def test_one_that_fails_stops_none_of_its_pack(alone: Path, tmp_path: Path) -> None:
    grid = {"pretrain.exposure": [1], "finetune.lr": [5e-4, 1e25, 1e-3, 2e-3]}
    study = tiny_study(tmp_path / "study", **(STUDY | {"grid": grid}))
    store = with_parents(alone, tmp_path / "runs")
    states = train_here(study, store, "finetune.clip=1e30")
    assert sorted(state.state for state in states.values()) == ["done"] * 5 + ["failed"]
    (failed,) = [state for state in states.values() if state.state == "failed"]
    assert failed.attempts[-1].failure == "diverged"
    # One process up to the one that failed, another for the rest.
    assert len(set(finetuned_by(store))) <= 2


def test_a_signal_between_two_runs_of_a_pack_fails_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"execution.parallel": 1, "execution.stages": {"finetune": {"pack": 3}}}
    study = linear_study(tmp_path, grid={"finetune.lr": [0.01, 0.011, 0.012]}, **fields)
    leave = os._exit

    def leave_late(code: int) -> None:
        """Give the launcher the time to name the next run."""
        time.sleep(0.3)
        leave(code)

    # A process asks for its next run once its garbage is collected. Forked from this process, workers have its changes.
    monkeypatch.setattr(worker, "gc", SimpleNamespace(collect=lambda: os.kill(os.getpid(), signal.SIGUSR2)))
    monkeypatch.setattr(os, "_exit", leave_late)
    monkeypatch.setattr(launcher, "fork_server", lambda modules: multiprocessing.get_context("fork"))
    monkeypatch.setattr(launcher, "start", lambda process: process.start())
    states = train_here(study, tmp_path / "runs")
    assert {state.state for state in states.values()} == {"done"}
    assert len(set(finetuned_by(tmp_path / "runs"))) == 3


def test_a_run_that_is_cancelled_while_it_begins_stays_cancelled(alone: Path, tmp_path: Path) -> None:
    store = Store(with_parents(alone, tmp_path / "runs"))
    opened = prepare_study(str(tiny_study(tmp_path / "study", **STUDY)), (), store.root)
    register(opened.tree, opened.file, opened.facts, opened.store)
    run = next(run for run in store.runs() if run.spec()["stage"] == "finetune")
    put_state(run, State("cancelled", reason="by retain cancel"))
    stop = StopRequest()
    stop.signal = CANCEL_SIGNAL.name
    with pytest.raises(AttemptStopped):
        make_attempt(store, run.key, Ranks(), stop)
    assert run.state().state == "cancelled"
    assert (run.state().reason, run.state().attempts) == ("by retain cancel", ())
    assert stop.forget_cancel()
    assert not stop.forget_cancel()


def test_a_pack_on_several_devices_is_refused(tmp_path: Path) -> None:
    execution = {"stages": {"finetune": {"pack": 4, "devices": 2}}}
    with pytest.raises(StudyError, match=r"execution.*pack: finetune stages on 2 devices .* remove pack"):
        check_study(tiny_fields(execution=execution), tmp_path / "tiny.yaml")


def test_a_pack_is_one_task_and_asks_for_the_time_of_all_its_stages(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = check_study(tiny_fields(**(STUDY | {"execution.stages.finetune.pack": 2})), tmp_path / "tiny.yaml")
    tree = expand(file, made_up_facts(file))
    register(tree, file, made_up_facts(file), store)
    leaves = [key for key, stage in tree.stages.items() if stage.stage == "finetune"]
    tokens = tree.stages[leaves[0]].tokens
    done = store.run(leaves[0])
    ended = Attempt(0.0, "node", 1, end=1.0, tokens=1, cause="finished")
    put_state(done, State("done", (ended,), progress=Progress(1, 1, tokens_per_second=tokens / 600)))
    resources = slurm_resources(tree, file, store, Site(), [])
    assert resources[leaves[0]].execution.slurm.minutes == 2 * 10 * 3 // 2 + 10
    register(tree, file, made_up_facts(file), store, as_executions(resources))
    (family,) = families(store, leaves[1:])
    assert "#SBATCH --array=0-1%" in sbatch_script(store, family, None, store.root / "code")


def test_submissions_know_the_job_of_each_run_also_those_of_earlier_versions(tmp_path: Path) -> None:
    store = Store(tmp_path)
    packed = new_submission(["a", "b", "c", "d", "e"], pack=2)
    write_submission(store, packed)
    assert read_submission(store, packed.token).tasks == [("a", "b"), ("c", "d"), ("e",)]
    place = submission_folder(store, packed.token) / "intent.json"
    fields = json.loads(place.read_text()) | {"job_id": "7"}
    place.write_text(json.dumps(fields))
    jobs = {"7_0": ("a", "b"), "7_1": ("c", "d"), "7_2": ("e",)}
    assert read_submission(store, packed.token).keys_of_jobs() == jobs
    place.write_text(json.dumps(fields | {"keys": ["a", "b"]}))
    assert read_submission(store, packed.token).keys_of_jobs() == {"7": ("a", "b")}
    del fields["pack"]
    place.write_text(json.dumps(fields))
    assert read_submission(store, packed.token).keys_of_jobs() == {
        f"7_{task}": (key,) for task, key in enumerate("abcde")
    }


@pytest.mark.slow
def test_compiled_steps_of_a_pack_have_the_bits_of_processes_of_their_own(alone: Path, tmp_path: Path) -> None:
    grid = STUDY["grid"] | {"finetune.lr": [5e-4, 1e-3]}
    study, store = tiny_study(tmp_path / "study", **(STUDY | {"grid": grid})), with_parents(alone, tmp_path / "runs")
    train_here(study, store, "execution.compile=true")
    assert len(set(finetuned_by(store))) == 1
    packed = weights(store)
    assert any((store / FOLDER).rglob("fxgraph/*"))
    for run in Store(store).runs():
        if run.spec()["stage"] == "finetune":
            assert "not compiled" not in run.log.read_text()
            shutil.rmtree(run.folder)
    train_here(study, store, "execution.compile=true", "execution.stages={}")
    assert len(set(finetuned_by(store))) == 2
    assert weights(store) == packed
