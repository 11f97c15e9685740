"""Names of jobs, the printed tree of a submission, and dry runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.launchers.cli.app import main
from retain.launchers.cli.views.submission import print_submission
from retain.launchers.jobs import backlog, code_snapshot, submit
from retain.launchers.jobs.backlog import submit_backlog, submit_dead
from retain.launchers.jobs.code_snapshot import snapshot_code, snapshot_path
from retain.launchers.jobs.data.submit import in_turns
from retain.launchers.jobs.job import Requeue, _requeue, check_needs
from retain.launchers.jobs.status import find_orphans, with_jobs
from retain.launchers.jobs.submissions import (
    BACKLOG,
    INTENT,
    Backlog,
    job_label,
    new_submission,
    read_backlog,
    read_submission,
    submission_folder,
    token_of,
    write_backlog,
    write_submission,
)
from retain.launchers.jobs.submit import Submitted, SubmittedJob
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import Job
from retain.launchers.slurm.partitions import Limits
from retain.results.store.runs import Store
from retain.results.store.status import study_status
from retain.sweeps.base.errors import MissingResourceError
from tests.disks import small_disk_at
from tests.launchers.jobs.conftest import Slurm
from tests.results.runs import kinds, registered
from tests.retain import environment
from tests.studies import linear_study, tiny_study


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_jobs_name_says_study_stage_and_key_and_its_token_finds_the_record(tmp_path: Path) -> None:
    label = job_label("mine", "finetune", "5b6e8cba58225bfc164b")
    submission = new_submission(["5b6e8cba58225bfc164b"], label=label)
    assert submission.name == f"mine-finetune-5b6e8cba-{submission.token}"
    assert token_of(submission.name) == submission.token
    write_submission(Store(tmp_path), submission)
    assert read_submission(Store(tmp_path), submission.token).name == submission.name
    live = {"7": Job("7", submission.name, "PENDING", "")}
    write_submission(Store(tmp_path), replace(submission, job_id="7"))
    assert [(one.job_id, one.key) for one in find_orphans(Store(tmp_path), live)] == [("7", submission.keys[0])]


def test_a_long_or_strange_study_leaves_stage_and_key_whole() -> None:
    label = job_label("a study, with spaces & more " * 9, "midtrain", "5b6e8cba58225bfc164b")
    assert label.endswith("-midtrain-5b6e8cba")
    assert len(label) == 60
    assert not set(label) & set(" ,&|")


def test_jobs_that_were_submitted_under_the_old_name_are_still_found(tmp_path: Path) -> None:
    submission = new_submission(["a" * 20])
    write_submission(Store(tmp_path), submission)
    record = submission_folder(Store(tmp_path), submission.token) / INTENT
    fields = json.loads(record.read_text())
    del fields["label"]
    record.write_text(json.dumps(fields))
    assert read_submission(Store(tmp_path), submission.token).name == f"retain-{submission.token}"
    assert token_of(f"retain-{submission.token}") == submission.token
    assert token_of("retain-ray-worker") is None
    assert token_of("somebody-elses-job") is None


def test_a_submission_prints_its_jobs_what_they_wait_for_and_how_to_watch_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = [
        SubmittedJob("12", ["a" * 20, "b" * 20], "n", "pretrain"),
        SubmittedJob("13", ["c" * 20], "n", "finetune", ["12_0"]),
    ]
    submitted = Submitted("mine", jobs, [], [], 0, 0, [], [], None)
    print_submission(submitted, "retain retry mine", "retain cancel mine", "retain status mine --watch")
    first, _, *rows, last = capsys.readouterr().out.splitlines()
    assert first == "3 stages submitted in 2 jobs"
    assert [row.split() for row in rows] == [
        ["12", "pretrain", "2", "aaaaaaaa", "-"],
        ["13", "finetune", "1", "cccccccc", "12_0"],
    ]
    assert last == "watch: retain status mine --watch"


@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_a_dry_run_on_unprepared_data_writes_nothing_and_calls_its_keys_provisional(
    launcher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path / "study")
    before = files_of(tmp_path)
    verb = ["submit", str(study), "--dry-run", "--launcher", launcher, "--store", str(tmp_path / "runs")]
    assert main(verb) == 0
    assert files_of(tmp_path) == before
    printed = capsys.readouterr().out
    assert "the data is not prepared, so keys and walltimes are provisional: retain data " in printed
    if launcher == "slurm":
        assert "#SBATCH --job-name=tiny-pretrain-" in printed
        assert "afterany:<job of " in printed
    else:
        assert "would train 8 stages of 8 in the background" in printed


def test_a_dry_run_prints_one_script_of_each_stage_and_what_differs_in_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path / "study")
    assert main(["submit", str(study), "--dry-run", "--store", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash") == 3
    assert printed.count("# site without a profile; walltime ") == 5
    other = printed.rsplit("# as the first script of finetune, but with\n")[1].split()
    assert [word.partition("=")[0] for word in other if word.startswith("--")] == ["--dependency", "--job-name"]


def test_without_slurm_a_submission_is_one_sentence_that_names_the_launcher_which_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    study = tiny_study(tmp_path / "study")
    assert main(["submit", str(study), "--store", str(tmp_path / "runs")]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("train on this machine: retain run, or submit --launcher local\n")
    assert not (tmp_path / "runs").exists()


def test_a_job_that_cannot_requeue_itself_says_so_in_its_runs_log_and_leaves_the_run_to_submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = linear_study(tmp_path, grid={})
    opened = prepare_study(str(study), (), tmp_path / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    run = opened.store.run(opened.tree.trials[0].leaf)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "/nowhere")  # as on nodes where scontrol is not installed
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(MissingResourceError, match="scontrol is not on PATH"):
            _requeue(Requeue(run))
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert "job 7 cannot requeue itself (SLURM: scontrol is not on PATH" in said.out + said.err
    assert run.state().state == "queued"


def test_packs_of_parts_begin_with_the_parts_that_a_budget_needs_first() -> None:
    keys = list("abcdefgh")
    assert in_turns(keys, 1) == keys
    assert "".join(in_turns(keys, 3)) == "adg" + "beh" + "cf"
    assert sorted(in_turns(keys, 5)) == keys


def test_a_run_whose_parent_was_deleted_is_skipped_with_the_cure_and_its_status_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "posttrain")[0]
    submission = replace(new_submission([run.key]), job_id="7")
    write_submission(store, submission)
    run.queue(submission.token)
    (parent,) = run.needs()
    shutil.rmtree(store.run(parent).folder)
    lacks = f"run {parent[:8]} is not in the store any more"
    assert check_needs(store, run) == ("skip", f"{lacks} and has no job; submit the study again")
    live = {"7": Job("7", submission.name, "PENDING", "Dependency")}
    reasons = {row.key: row.reason for row in with_jobs(study_status(tree, store), store, live)}
    assert reasons[run.key] == f"Dependency: {lacks}"


def test_a_damaged_list_of_waiting_runs_does_not_fail_the_job_that_would_submit_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / BACKLOG).write_text("{")
    submit_backlog(Store(tmp_path))
    assert f"{BACKLOG} is damaged" in capsys.readouterr().out


@given(st.permutations(range(12)), st.integers(0, 12), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_runs_that_wait_for_room_keep_their_order_and_none_is_lost(
    order: list[int], waiting: int, looked_at: set[int], deferred: set[int]
) -> None:
    before = Backlog(tuple(map(str, order[:waiting])), "6")
    keys = [str(key) for key in range(12) if key in looked_at]
    after = before.once_submitted(keys, {str(key) for key in deferred & looked_at})
    others = [key for key in before.keys if key not in keys]
    assert [key for key in after.keys if key not in keys] == others
    assert [key for key in after.keys if key in keys] == [key for key in keys if int(key) in deferred]
    assert after.carrier == "6"


def test_a_deleted_run_does_not_keep_the_others_waiting_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = registered(tmp_path / "runs")
    one, other = kinds(tree, store, "pretrain")
    (store.root / "submissions").mkdir()
    write_backlog(store, Backlog((one.key, other.key), "6"))
    shutil.rmtree(one.folder)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(backlog, "read_limits", lambda: Limits(array_tasks=1000, jobs=None))
    monkeypatch.setenv("PATH", "/nowhere")  # it gets as far as asking SLURM for the jobs of its runs
    submit_backlog(store)
    assert "not submitted: SLURM: squeue is not on PATH" in capsys.readouterr().out
    assert read_backlog(store) == Backlog((other.key,), "6")


def test_a_copy_of_code_that_is_being_edited_has_the_name_of_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = iter(["before", "after"])

    def edited_before_each_listing() -> Iterator[tuple[str, Path]]:
        (tmp_path / "a.py").write_text(next(contents))
        yield "retain/a.py", tmp_path / "a.py"

    monkeypatch.setattr(code_snapshot, "_source_files", edited_before_each_listing)
    copied = snapshot_code(tmp_path)
    monkeypatch.setattr(code_snapshot, "_source_files", lambda: [("retain/a.py", copied / "retain" / "a.py")])
    assert snapshot_path(tmp_path) == copied


def test_a_copy_of_the_code_that_does_not_fit_names_the_store_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "disk", 1) as disk:
        with pytest.raises(OSError, match="No space left") as raised:
            snapshot_code(disk)
        assert Path(raised.value.filename).parent == disk / "code"
        assert raised.value.filename2 is None
        assert not list((disk / "code").iterdir())


def test_a_died_job_that_cannot_be_requeued_says_so_in_one_sentence(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "pretrain")[0]
    submission = replace(new_submission([run.key]), job_id="7")
    write_submission(store, submission)
    run.queue(submission.token)
    run.begin(os.getpid())
    command = [sys.executable, "-m", "retain.launchers.jobs.epilogue", str(store.root), submission.token]
    on_a_node = environment({"SLURM_JOB_ID": "7", "PATH": "/nowhere"})  # without scontrol
    done = subprocess.run(command, capture_output=True, text=True, env=on_a_node, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("retain: SLURM: scontrol is not on PATH"), done.stderr
    assert run.state().state == "queued"


def test_a_job_that_submits_a_dead_run_again_says_of_what_it_died(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "pretrain")[0]
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    run.begin(os.getpid())
    slurm.command("sacct", "echo '8|TIMEOUT'")
    monkeypatch.setattr(submit, "submit_runs", lambda store, keys: store.run(keys[0]).queue("a-token"))
    submit_dead(store, run)
    said = f"submitted {run.key[:8]} again: lost: job 8 died without reporting (TIMEOUT)\n"
    assert capsys.readouterr().out.endswith(said)
