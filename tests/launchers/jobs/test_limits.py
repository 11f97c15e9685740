"""Which runs are submitted where a site limits the number of jobs, with SLURM's commands stood in for."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retain.launchers.cli.views.submission import print_submission
from retain.launchers.jobs.status import with_jobs
from retain.launchers.jobs.submissions import (
    INTENT,
    read_backlog,
    submission_folder,
    submitted_jobs,
    write_backlog,
)
from retain.launchers.jobs.submit import submit_runs
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.launchers.slurm.client import Job
from retain.results.store.status import study_status
from retain.sweeps.base.errors import MissingResourceError
from tests.studies import linear_study

POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)
ONE_BY_ONE = """
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $1)
if [ ${last:-0} -ge $MOST ]; then printf 'sbatch: error: %s\\n' AssocGrpSubmitJobsLimit "POLICY" >&2; exit 1; fi
echo x >> $0.calls; echo "Submitted batch job $(wc -l < $0.calls)"
"""
PATIENT = """
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $1)
if [ ${last:-0} -ge $MOST ]; then
    echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2
    exec sleep 60
fi
echo x >> $0.calls; echo "Submitted batch job $(wc -l < $0.calls)"
"""
Commands = Callable[..., None]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Put a shell script in the place of each of these commands; the others of SLURM print nothing."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")

    def write(**scripts: str) -> None:
        for name in ("sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "sinfo"):
            (place / name).write_text(f"#!/bin/sh\n{scripts.get(name, '')}\n".replace("POLICY", POLICY))
            (place / name).chmod(0o755)

    return write


@pytest.fixture
def opened(tmp_path: Path) -> OpenedStudy:
    """A registered study of one pretraining, one post-training and five fine-tunings."""
    grid = {"pretrain.exposure": [0], "finetune.lr": [0.001 * number for number in range(1, 6)]}
    opened = prepare_study(str(linear_study(tmp_path / "study", grid=grid)), (), tmp_path / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    return opened


@pytest.mark.parametrize(("most", "jobs"), [(5, [1, 1, 5]), (4, [1, 1, 2]), (1, [1, 1, 1])])
def test_part_of_an_array_is_submitted_where_a_groups_limit_has_no_room_for_all_of_it(
    most: int, jobs: list[int], commands: Commands, opened: OpenedStudy
) -> None:
    commands(sbatch=ONE_BY_ONE.replace("$MOST", str(most)))
    store, keys = opened.store, list(opened.tree.stages)
    submitted = submit_runs(store, keys)
    assert [len(job.keys) for job in submitted.jobs] == jobs
    waiting = keys[sum(jobs) :]
    assert submitted.deferred == waiting
    assert list(read_backlog(store).keys) == waiting
    assert {store.run(key).state().state for key in keys} - {"queued"} == ({"planned"} if waiting else set())
    assert submitted_jobs(store, map(store.run, keys)).keys() == set(keys) - set(waiting)
    assert not submitted.unattended


def test_a_full_cluster_gets_what_fits_without_the_minutes_for_which_sbatch_would_try(
    commands: Commands, opened: OpenedStudy
) -> None:
    commands(sbatch=PATIENT.replace("$MOST", "4"))
    store, keys, began = opened.store, list(opened.tree.stages), time.monotonic()
    submitted = submit_runs(store, keys)
    assert time.monotonic() - began < 50
    assert [len(job.keys) for job in submitted.jobs] == [1, 1, 2]
    assert submitted.deferred == list(read_backlog(store).keys) == keys[4:]
    assert {store.run(key).state().state for key in keys[4:]} == {"planned"}


def test_a_limit_on_walltime_is_an_error_that_names_the_field_and_leaves_no_run_waiting(
    commands: Commands, opened: OpenedStudy
) -> None:
    commands(sbatch='echo "sbatch: error: QOSMaxWallDurationPerJobLimit" >&2; echo "sbatch: error: POLICY" >&2; exit 1')
    with pytest.raises(
        MissingResourceError, match=r"refused pretrain .*: QOSMaxWall.*; lower execution\.slurm\.minutes"
    ):
        submit_runs(opened.store, list(opened.tree.stages))
    assert read_backlog(opened.store).keys == ()


def test_where_no_job_is_left_to_submit_what_waits_submit_and_status_say_to_submit_again(
    commands: Commands, opened: OpenedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    store, tree = opened.store, opened.tree
    commands(sbatch='echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    submitted = submit_runs(store, list(tree.stages))
    assert submitted.unattended
    print_submission(submitted, "retry")
    again = "submit again once you have fewer jobs"
    assert f"7 stages beyond your limit of jobs: no job of this store is left to submit them, so {again}" in (
        capsys.readouterr().out
    )
    waits = "waits for room within your limit of jobs"
    rows = with_jobs(study_status(tree, store), store, {})
    assert {row.reason for row in rows} == {
        f"{waits}; no job of this store is left to submit it: submit its study again once you have fewer jobs"
    }
    write_backlog(store, replace(read_backlog(store), carrier="6"))
    carrier = "case $* in *--name*) ;; *) echo '6|any|PENDING|BeginTime' ;; esac"
    commands(sbatch='echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1', squeue=carrier)
    assert not submit_runs(store, list(tree.stages)).unattended
    rows = with_jobs(study_status(tree, store), store, {"6": Job("6", "any", "PENDING", "BeginTime")})
    assert {row.reason for row in rows} == {f"{waits}; job 6 submits it"}
    commands(sbatch=ONE_BY_ONE.replace("$MOST", "9"))
    submit_runs(store, list(tree.stages)[:1])
    first, *others = study_status(tree, store)
    token = store.run(first.key).state().submission
    rows = with_jobs([first, *others], store, {"1": Job("1", f"name-{token}", "PENDING", "")})
    assert {row.reason for row in rows[1:]} == {f"{waits}; the next of your jobs of this store that ends submits it"}
    (submission_folder(store, str(token)) / INTENT).write_text("{")
    rows = with_jobs([first, *others], store, {"1": Job("1", f"name-{token}", "PENDING", "")})
    assert "is damaged" in str(rows[0].reason)
    assert all("no job of this store is left to submit it" in str(row.reason) for row in rows[1:])
