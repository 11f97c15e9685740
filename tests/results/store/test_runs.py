"""What other processes see of a run while it is written, and after its process was killed."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from retain.results.store.curves import CurveWriter, Point
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store, make_store, open_store
from retain.results.store.state import Progress, State
from retain.results.store.status import current_state
from retain.results.store.verify import damaged_files, run_problems
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError
from tests.disks import recorded_syncs
from tests.results.runs import finish, kinds, put_state, registered, write_model
from tests.results.store.processes import start_python

WRITE_STATES = """
import sys
from dataclasses import replace
from pathlib import Path
from retain.results.store.runs import Run
from retain.results.store.state import Progress
from tests.results.runs import put_state
run = Run(Path(sys.argv[1]))
for step in range(300):
    state = run.state()
    put_state(run, replace(state, reason=f"{step} " * 2000, progress=Progress(step, step, float(step))))
"""

FINISH_AND_DIE = """
import os, shutil, sys
from pathlib import Path
from retain.results.store.runs import Run
from tests.results.runs import finish
planned, copies = Path(sys.argv[1]), Path(sys.argv[2])
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")

def kill_at(wanted):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in WRITES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]):
            count += 1
            if count == wanted:
                os.kill(os.getpid(), 9)
    return hook

wanted, ended = 0, 9
while ended == 9:
    wanted += 1
    run = Run(copies / str(wanted) / planned.name)
    shutil.copytree(planned, run.folder)
    (run.folder / "checkpoint").mkdir()
    (run.folder / "checkpoint" / "state").write_text("x")
    child = os.fork()
    if child == 0:
        sys.addaudithook(kill_at(wanted))
        finish(run)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    print(ended, flush=True)
"""
"""Finishes copies of a run in processes that are killed at their first, second, third ... write, until one is not killed."""

PUBLISH_OFTEN = """
import sys
from pathlib import Path
from retain.results.store.runs import Run
from retain.results.store.state import State
from tests.results.runs import finish, put_state
run = Run(Path(sys.argv[1]))
for number in range(40):
    finish(run, float(number))
    put_state(run, State())
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A planned run."""
    tree, store = registered(tmp_path / "runs")
    return kinds(tree, store, "pretrain")[0]


def test_readers_never_see_half_a_state_while_it_is_written(run: Run) -> None:
    process, seen = start_python(WRITE_STATES, run.folder), set()
    while process.poll() is None:
        state = run.state()
        if state.reason:
            assert set(state.reason.split()) == {str(state.progress.tokens)}
            assert state.progress.loss == state.progress.total == state.progress.tokens
            seen.add(state.progress.tokens)
    assert process.returncode == 0
    assert len(seen) > 2


def test_a_run_that_a_reader_sees_as_done_is_complete_and_matches_its_checksums(run: Run) -> None:
    process, seen = start_python(PUBLISH_OFTEN, run.folder), 0
    while process.poll() is None:
        before = run.state()
        if before.state != "done":
            continue
        try:
            problems = damaged_files(run)
        except FileNotFoundError:
            problems = ["a file vanished"]
        if run.state() == before:
            assert not problems
            seen += 1
    assert process.returncode == 0
    assert seen > 0


def test_a_run_killed_at_any_write_while_it_finishes_is_complete_or_can_be_finished(run: Run, tmp_path: Path) -> None:
    output = start_python(FINISH_AND_DIE, run.folder, tmp_path).communicate(timeout=60)[0].split()
    assert output == [str(int(signal.SIGKILL))] * (len(output) - 1) + ["0"]
    assert len(output) > 10
    seen = []
    for number in range(1, len(output) + 1):
        copy = Store(tmp_path / str(number)).run(run.key)
        seen.append(copy.state().state)
        if seen[-1] != "done":
            shutil.rmtree(copy.folder / "model.partial", ignore_errors=True)
            finish(copy)
        assert run_problems(Store(tmp_path / str(number)), copy) == []
        assert load_file(copy.model / "model.safetensors")["weight"][-1] == 999
        causes = [attempt.cause for attempt in copy.state().attempts]
        assert causes[-1] == "finished"
        assert set(causes[:-1]) <= {"lost"}
    assert seen == sorted(seen, key=["planned", "running", "done"].index)
    assert set(seen) == {"planned", "running", "done"}


def test_an_attempt_that_never_reported_its_end_is_closed_as_lost_at_its_last_report(run: Run) -> None:
    run.begin(1)
    put_state(run, replace(run.state(), heartbeat=12.5, progress=Progress(tokens=640, total=7680)))
    assert run.begin(2)
    lost, current = run.state().attempts
    assert (lost.pid, lost.end, lost.tokens, lost.cause) == (1, 12.5, 640, "lost")
    assert (current.pid, current.end, current.cause) == (2, None, None)
    assert run.fail("out of memory")
    ended = run.state()
    assert ended.attempts[0] == lost
    assert (ended.state, ended.reason, ended.attempts[1].cause) == ("failed", "out of memory", "error")
    assert ended.attempts[1].end == pytest.approx(time.time(), abs=60)
    assert run.begin(3)
    assert run.state().attempts[:2] == ended.attempts


def test_an_attempt_that_died_between_its_checkpoint_and_its_next_report_counts_up_to_the_checkpoint(run: Run) -> None:
    run.begin(1)
    run.report(Progress(tokens=640, total=7680))
    run.begin(2, tokens=1280)
    lost, current = run.state().attempts
    assert (lost.tokens, current.tokens_at_start) == (1280, 1280)
    assert run.state().progress == Progress(1280, 7680)
    run.begin(3, tokens=640)  # the checkpoint at 1280 was damaged
    assert [attempt.tokens for attempt in run.state().attempts] == [1280, 1280, 0]


def test_a_run_names_each_job_that_trained_it_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.begin(1)
    for job in ("7", "7", "8", "7"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        run.begin(1)
    assert run.state().job_ids == ("7", "8")
    assert [attempt.job_id for attempt in run.state().attempts] == [None, "7", "7", "8", "7"]


def test_a_run_that_slurm_has_no_job_for_belongs_to_no_submission(run: Run) -> None:
    run.queue("a-token")
    assert (run.state().state, run.state().submission) == ("queued", "a-token")
    run.unqueue()
    assert (run.state().state, run.state().submission) == ("planned", None)


@pytest.mark.parametrize("left", ["losses.json", "model"])
def test_a_run_without_a_state_is_not_trained_over_results_that_it_has(left: str, run: Run) -> None:
    finish(run)
    for name in {"losses.json", "model"} - {left}:
        (run.folder / name).rename(run.folder.parent / f"lost-{name}")
    (run.folder / "state.json").unlink()
    with pytest.raises(DamageError, match=r"state\.json is missing; delete .* and run its study again"):
        run.state()


def test_the_files_of_a_run_are_on_disk_before_it_is_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_syncs(monkeypatch, run.model) as synced:
        finish(run)
    before = {inode for inode, named in synced if not named}
    assert {path.stat().st_ino for path in (run.model, *run.model.iterdir())} <= before
    after = [inode for inode, named in synced if named]
    order = [
        after.index(path.stat().st_ino) for path in (run.folder / "losses.json", run.folder, run.folder / "state.json")
    ]
    assert order == sorted(order)


def test_a_running_run_whose_process_is_gone_is_shown_as_planned_with_a_cure(run: Run) -> None:
    lease = take_lease(run.lease)
    assert lease
    run.begin(os.getpid())
    assert current_state(run).state == "running"
    lease.release()
    assert current_state(run).state == "planned"
    assert "run its study again" in (current_state(run).reason or "")


def test_registering_again_keeps_the_state_and_updates_the_execution_of_runs_that_are_not_done(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    first, second = kinds(tree, store, "pretrain")
    finish(first)
    registered(tmp_path / "runs", **{"execution.micro_batch": 2})
    assert (first.state().state, second.state().state) == ("done", "planned")
    assert first.spec()["execution"]["micro_batch"] is None
    assert second.spec()["execution"]["micro_batch"] == 2


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_a_run_keeps_its_optimizer_if_any_study_that_registers_it_continues_with_it(
    wanted: tuple[bool, bool], run: Run
) -> None:
    store, spec = Store(run.folder.parent), run.spec()
    (run.folder / "stage.json").unlink()
    for wants in wanted:
        store.register(run.key, spec | ({"keeps_optimizer": True} if wants else {}))
    assert run.spec().get("keeps_optimizer", False) == any(wanted)


def test_studies_that_register_a_run_at_the_same_time_all_have_their_corpora_in_it(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "pretrain")[0]
    spec = run.spec()

    def register(number: int) -> None:
        store.register(run.key, spec | {"others": {f"other{number}": f"{number:020}"}})

    with ThreadPoolExecutor(4) as studies:
        list(studies.map(register, range(40)))
    assert run.spec()["others"].keys() >= {f"other{number}" for number in range(40)}


def test_an_unregistered_run_is_planned(tmp_path: Path) -> None:
    assert Store(tmp_path).run("0123").state() == State()
    assert Store(tmp_path).states({"0123": None})["0123"].state == "planned"


def test_a_run_is_found_by_a_unique_beginning_of_its_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("abc1", "abd2"):
        store.register(key, {"execution": {}})
    assert store.find("abd").key == "abd2"
    with pytest.raises(StudyError, match=r"ab: 2 run keys in .* begin with this; give more digits"):
        store.find("ab")
    with pytest.raises(StudyError, match="x: run not found in "):
        store.find("x")


def test_the_error_names_a_store_that_cannot_be_written_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (open_store, make_store):
        with pytest.raises(MissingResourceError, match=r"--store .*/file/runs: .*RETAIN_STORE"):
            make(tmp_path / "file" / "runs")
    assert make_store(tmp_path / "new" / "runs").runs() == []
    assert list((tmp_path / "new" / "runs").iterdir()) == []


@pytest.mark.parametrize("file", ["model/model.safetensors", "losses.json", "model/config.json"])
def test_a_flipped_bit_in_any_file_of_a_done_run_is_found(file: str, run: Run) -> None:
    finish(run)
    assert damaged_files(run) == []
    content = bytearray((run.folder / file).read_bytes())
    content[-1] ^= 1
    (run.folder / file).write_bytes(content)
    assert damaged_files(run) == [f"{file} is damaged"]
    (run.folder / file).unlink()
    assert damaged_files(run) == [f"{file} is missing"]


def test_verify_reports_a_done_run_without_checksums(run: Run) -> None:
    finish(run)
    raw = json.loads((run.folder / "state.json").read_text())
    (run.folder / "state.json").write_text(json.dumps(raw | {"checksums": {}}))
    (problem,) = run_problems(Store(run.folder.parent), run)
    assert "checksum" in problem


def test_verify_reports_a_done_run_that_lacks_a_loss_or_whose_curves_are_cut(run: Run) -> None:
    store = Store(run.folder.parent)
    finish(run)
    curves = CurveWriter(run.folder)
    curves.points.append(Point("pretrain/loss", 64, 2.0, 0.0))
    curves.rewrite()
    assert run_problems(store, run) == []
    with (run.folder / "curves.jsonl").open("a") as stream:
        stream.write('{"cur')
    (problem,) = run_problems(store, run)
    assert "curves.jsonl: the last line is not complete; delete this file" in problem
    (run.folder / "curves.jsonl").unlink()
    run.retry(reopen=True)
    splits = {"pre": {"loss": 1.0, "tokens": 100}}
    run.finish(
        write_model(run.folder / "model.partial"),
        {"losses.json": {"splits": splits, "steps": 1, "trained_tokens": 64}},
    )
    lacking = ", ".join(sorted(set(run.spec()["evaluation"]) - set(splits)))
    assert lacking
    (problem,) = run_problems(store, run)
    assert problem == f"losses.json lacks the split {lacking}; delete the run's folder and train it again"


def test_verify_reports_a_done_run_whose_parent_is_not_done_and_a_damaged_parent_once(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    child = kinds(tree, store, "posttrain")[0]
    (parent,) = child.needs()
    finish(child)
    assert run_problems(store, child) == [f"the run is done, but its parent {parent} is not; train the parent again"]
    (store.run(parent).folder / "state.json").write_text("{")
    assert run_problems(store, child) == []
    assert len(run_problems(store, store.run(parent))) == 1
    (store.run(parent).folder / "state.json").unlink()
    finish(store.run(parent))
    assert run_problems(store, child) == []
