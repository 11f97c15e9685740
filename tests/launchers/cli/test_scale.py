"""What a user may rely on when a store has very many runs; benchmarks/scale.py measures how fast that is."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from retain.launchers.checks.verify_tokens import problems as token_problems
from retain.launchers.cli.views.status_table import PRIORITY, most_important, status_table
from retain.launchers.console import print_json
from retain.launchers.jobs import branches, submissions
from retain.launchers.jobs.branches import cancel_runs, retry_runs
from retain.launchers.jobs.status import find_orphans, with_jobs
from retain.launchers.jobs.submissions import (
    new_submission,
    submission_folder,
    submitted_job,
    submitted_jobs,
    write_submission,
)
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import Job
from retain.results.store.runs import Run, Store
from retain.results.store.status import study_status
from retain.results.tensorboard.events import run_events_name
from tests.conftest import Prepared, Trained
from tests.results.runs import finish_all, put_state, registered
from tests.retain import COMMAND, environment, retain
from tests.studies import linear_study

EVENTS = """
from retain.results.tensorboard.events import digest_of, run_events_name, study_hyperparameters
axes = {f"field{number}": number for number in range(8)}
print(digest_of([study_hyperparameters("tiny", [axes])]), run_events_name("digest", axes))
"""


def test_a_long_status_keeps_failed_and_active_runs_in_the_order_of_the_tree(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    rows = study_status(tree, store)
    states = ["done", "done", "planned", "failed", "done", "running", "queued", "planned"]
    labelled = [replace(row, state=state) for row, state in zip(rows, states, strict=True)]
    assert set(states) <= set(PRIORITY)
    assert [row.state for row in most_important(labelled, 3)] == ["failed", "running", "queued"]
    assert [row.state for row in most_important(labelled, 4)] == ["planned", "failed", "running", "queued"]
    assert most_important(labelled, 8) == labelled
    table = status_table(labelled, most_important(labelled, 3))
    assert (table.row_count, table.title) == (3, "3 done, 2 planned, 1 failed, 1 running, 1 queued")


def test_a_document_is_one_json_value_with_each_run_on_its_own_line(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"runs": [{"key": "a", "reason": "line\nbreak"}, {"key": "b"}], "none": [], "totals": {"a": {"b": 1.5}}}
    print_json(document | {"study": None})
    printed = capsys.readouterr().out
    assert json.loads(printed) == document | {"study": None}
    assert sum(line.strip().startswith('{"key"') for line in printed.splitlines()) == 2
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"loss": float("nan")})


@pytest.mark.parametrize("command", [["status", "--json"], ["status"], ["plan", "--json"], ["submit", "--dry-run"]])
def test_reading_a_prepared_study_imports_nothing_that_trains_or_encodes(
    command: list[str], prepared: Prepared
) -> None:
    verb, *options = command
    arguments = [verb, str(prepared.file.path), "--store", str(prepared.store), *options]
    script = f"import sys; from retain.launchers.cli.app import main; main({arguments}); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout
    heavy = {"torch", "transformers", "datasets", "pandas", "matplotlib", "numpy", "tokenizers", "http.client"}
    assert not (heavy | ({"rich"} if "--json" in options else set())) & set(ended.stderr.split())


def test_a_store_lists_its_registered_runs_in_the_order_of_their_keys(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    (store.root / "corpora").mkdir()
    (store.root / "zzz").write_text("no run")
    assert [run.key for run in store.runs()] == sorted(tree.stages)
    assert Store(tmp_path / "none").runs() == Store(store.root / "zzz").runs() == []


def test_the_jobs_of_many_runs_are_the_jobs_of_each_run(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    keys = list(tree.stages)
    array, single, packed = new_submission(keys[:3]), new_submission(keys[3:4]), new_submission(keys[4:7], pack=2)
    for number, submission in enumerate((array, single, packed)):
        write_submission(store, replace(submission, job_id=str(number)))
        for key in submission.keys:
            put_state(store.run(key), replace(store.run(key).state(), submission=submission.token))
    put_state(store.run(keys[7]), replace(store.run(keys[7]).state(), submission="gone"))
    found = submitted_jobs(store, map(store.run, keys))
    assert list(found.values()) == ["0_0", "0_1", "0_2", "1", "2_0", "2_0", "2_1"]
    assert found == {key: job for key in keys if (job := submitted_job(store, store.run(key)))}
    live = {job: Job(job, array.name, "PENDING", "") for job in ("0_0", "0_1", "0_2")}
    assert find_orphans(store, live) == []
    (store.root / keys[1] / "stage.json").unlink()
    (store.root / keys[1] / "state.json").unlink()
    (store.root / keys[1]).rmdir()
    assert [(orphan.job_id, orphan.key) for orphan in find_orphans(store, live)] == [("0_1", keys[1])]


def test_cancel_and_status_read_the_record_of_an_array_once_however_many_runs_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, store = registered(tmp_path / "runs")
    array = replace(new_submission(list(tree.stages)), job_id="7")
    write_submission(store, array)
    for key in array.keys:
        store.run(key).queue(array.token)
    reads: list[str] = []
    read = submissions.read_submission
    monkeypatch.setattr(submissions, "read_submission", lambda *names: (reads.append(""), read(*names))[1])
    (submission_folder(store, array.token) / "7_0_0_log.out").touch()
    rows = with_jobs(study_status(tree, store), store, {})
    assert all("is gone" in str(row.reason) for row in rows)
    assert [row.log is not None and row.log.endswith("7_0_0_log.out") for row in rows] == [True] + [False] * 7
    assert len(reads) == 1
    monkeypatch.setattr(branches, "has_slurm", lambda: True)
    ended: list[str] = []
    monkeypatch.setattr(branches, "cancel_jobs", ended.extend)
    live = {job: Job(job, array.name, "PENDING", "") for job in array.keys_of_jobs()}
    monkeypatch.setattr(branches, "live_jobs", lambda: live)
    assert cancel_runs(store, array.keys) == list(array.keys)
    assert ended == [f"7_{number}" for number in range(8)]
    assert len(reads) <= 3


def test_cancelling_a_pack_of_runs_reads_each_state_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, store = registered(tmp_path / "runs")
    pack = replace(new_submission(list(tree.stages), pack=len(tree.stages)), job_id="7")
    write_submission(store, pack)
    for key in pack.keys:
        store.run(key).queue(pack.token)
    reads: list[Run] = []
    read = Run.state
    monkeypatch.setattr(Run, "state", lambda run: (reads.append(run), read(run))[1])
    monkeypatch.setattr(branches, "has_slurm", lambda: True)
    ended: list[str] = []
    monkeypatch.setattr(branches, "cancel_jobs", ended.extend)
    monkeypatch.setattr(branches, "live_jobs", lambda: {"7": Job("7", pack.name, "PENDING", "")})
    assert cancel_runs(store, pack.keys) == list(pack.keys)
    assert ended == ["7"]
    assert len(reads) <= 7 * len(pack.keys)


def test_runs_that_are_cancelled_or_retried_wait_for_the_disk_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, store = registered(tmp_path / "runs")
    keys = list(tree.stages)
    together = threading.Barrier(len(keys), timeout=30)
    monkeypatch.setattr(os, "fsync", lambda file: together.wait())
    assert cancel_runs(store, keys) == keys
    assert retry_runs(store, keys) == keys


def test_cancel_and_retry_show_only_a_terminal_how_far_they_are(tmp_path: Path) -> None:
    study, store = linear_study(tmp_path), tmp_path / "runs"
    opened = prepare_study(str(study), (), store)
    register(opened.tree, opened.file, opened.facts, opened.store)

    def shown(*words: str) -> str:
        leader, terminal = os.openpty()
        command = [*COMMAND, *words, str(study), "--store", str(store)]
        more = environment({"PATH": str(tmp_path), "TERM": "xterm"})  # without SLURM
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=terminal, env=more, check=True)
        os.write(terminal, b"end")
        said = os.read(leader, 1 << 16).decode()
        os.close(terminal)
        os.close(leader)
        return said

    assert "cancelling runs: 8 of 8" in shown("cancel")
    assert "planning runs again: 8 of 8" in shown("retry")
    assert shown("retry", "--json") == "end"
    for verb in ("cancel", "retry"):
        assert retain(verb, study, "--store", store, more={"PATH": str(tmp_path)}).stderr == ""


def test_registering_stages_again_changes_nothing_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    finish_all(tree, store, lambda stage: stage == "pretrain")
    before = {path: path.read_bytes() for path in store.root.rglob("*.json")}
    registered(tmp_path / "runs")
    assert {path: path.read_bytes() for path in store.root.rglob("*.json")} == before
    assert not list(store.root.rglob(".*"))


def test_tensorboard_views_have_the_same_names_in_every_process() -> None:
    printed = {
        subprocess.run([sys.executable, "-c", EVENTS], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(printed) == 1
    assert run_events_name("digest", {"seed": 1}) != run_events_name("digest", {"seed": 2})
    assert run_events_name("digest", {"seed": 1}) != run_events_name("other", {"seed": 1})


def test_siblings_share_a_data_digest_and_a_wrong_digest_is_still_found(trained: Trained) -> None:
    store = Store(trained.store)
    siblings = [run for run in store.runs() if run.spec()["stage"] == "finetune"]
    known: dict[str, str] = {}
    assert [token_problems(store, run, known) for run in siblings] == [[]] * len(siblings)
    assert len(known) == 1

    class WrongDigest(Run):
        def losses(self) -> dict[str, object]:
            return super().losses() | {"token_digest": "0" * 32}

    (problem,) = token_problems(store, WrongDigest(siblings[-1].folder), known)
    assert "the run consumed up to its end are not those of its recipe" in problem
