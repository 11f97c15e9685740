"""`execution.on_end`: the user's own command runs once for a study that ends, and once for a branch that fails."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retain.launchers.checks.verify import verify_store
from retain.launchers.jobs import epilogue
from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.launchers.local.run import run_study
from retain.launchers.planning.opened_study import open_study
from retain.launchers.planning.register import register
from retain.launchers.stage import on_end
from retain.launchers.stage.failures import ON_SLURM
from retain.launchers.stage.on_end import begin_launch, renew_launches, tell_ended
from retain.results.store.readiness import written_state
from retain.results.store.runs import Store
from retain.sweeps.base.surroundings import BEFORE
from retain.sweeps.tree.tree import Tree
from tests.results.runs import finish, finish_all
from tests.results.runs import registered as plan_tiny
from tests.retain import environment, retain
from tests.studies import linear_study

LINE = 'echo "$RETAIN_ENDED $RETAIN_STUDY $RETAIN_DONE $RETAIN_FAILED $RETAIN_SKIPPED $RETAIN_LEFT" >> {told}'
DIVERGING = {
    "grid": {"pretrain.exposure": [1], "posttrain.lr": [0.01, 5], "finetune.lr": [0.005, 0.01]},
    "posttrain.time": 500,
}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told.txt"


@pytest.fixture
def registered(tmp_path: Path, told: Path) -> tuple[Store, Tree]:
    """A store with the planned runs of a study with a command: one pretraining for two branches of three runs."""
    study = linear_study(tmp_path / "study", **DIVERGING)

    opened = open_study(str(study), (), tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    register(opened.tree, opened.file, opened.facts, opened.store)
    begin_launch(opened.store, opened.tree, LINE.format(told=told))
    return opened.store, opened.tree


def fail(store: Store, keys: list[str]) -> None:
    for key in keys:
        run = store.run(key)
        run.begin(os.getpid())
        run.fail("diverged", "diverged")


def test_a_study_tells_its_end_once_and_a_failed_branch_tells_its_failure_once(tmp_path: Path, told: Path) -> None:
    study = linear_study(tmp_path, execution={"on_end": LINE.format(told=told), "parallel": 1}, **DIVERGING)
    run_study(str(study), (), tmp_path / "runs")
    ends = lines(told)
    assert ends[-1] == "study linear 4 1 2 0"
    assert all(line.startswith("branch linear ") and line.split()[3] == "1" for line in ends[:-1])
    assert len(ends) <= 2
    # The next launch trains the failed stage again, and ends again.
    run_study(str(study), (), tmp_path / "runs")
    assert lines(told)[len(ends) :] == ["study linear 4 1 2 0"]


def test_a_study_without_failures_tells_its_end_once_with_a_summary(tmp_path: Path, told: Path) -> None:
    command = f'echo "$RETAIN_SUMMARY in $RETAIN_STORE" >> {told}'
    study, store = linear_study(tmp_path, execution={"on_end": command}), tmp_path / "runs"
    for _ in range(2):  # the second run has nothing to train, so nothing ends
        run_study(str(study), (), store)
    count = len(Store(store).runs())
    assert lines(told) == [f"linear has ended: {count} done in {store}"]
    assert verify_store(Store(store), None) == (count, [])


def test_the_command_has_the_environment_of_the_user(tmp_path: Path, told: Path) -> None:
    """A script imports its neighbour and the user's own modules, and no library is told to stay offline."""
    (tmp_path / "notify.py").write_text(
        "import json, os, neighbour, of_the_user\nprint(json.dumps(sorted(os.environ)))\n"
    )
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "of_the_user.py").touch()
    command = f"{sys.executable} {tmp_path / 'notify.py'} > {told}"
    study = linear_study(tmp_path, execution={"on_end": command}, grid={"pretrain.exposure": [1]})
    own = {"PYTHONPATH": str(tmp_path / "src")}
    retain("run", study, "--store", tmp_path / "runs", more=own)
    added = set(json.loads(told.read_text())) - environment(own).keys() - {"PWD", "OLDPWD", "SHLVL", "_"}
    assert added
    assert all(name.startswith("RETAIN_") for name in added)
    assert BEFORE not in added


def test_a_failing_command_is_a_note_and_no_failure(tmp_path: Path) -> None:
    study = linear_study(tmp_path, execution={"on_end": "echo no mail here; exit 7"})
    ended = retain("run", study, "--store", tmp_path / "runs")
    assert "retain: execution.on_end of linear ended with code 7; what it printed is in " in ended.stderr
    assert "no mail here" not in ended.stdout
    assert (tmp_path / "runs/studies/linear/on_end/output.log").read_text() == "no mail here\n"


def test_a_slow_command_is_stopped(
    registered: tuple[Store, Tree], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: Path
) -> None:
    store, tree = registered
    monkeypatch.setattr(on_end, "LONGEST_S", 0.2)
    begin_launch(store, tree, f"sleep 20; echo late >> {told}")
    fail(store, list(tree.stages)[:1])
    tell_ended(store, list(tree.stages)[:1], {})
    assert "execution.on_end of linear was stopped, as it took more than 0 s" in capsys.readouterr().err
    assert not told.exists()


def test_jobs_that_end_at_the_same_time_tell_the_end_once(registered: tuple[Store, Tree], told: Path) -> None:
    store, tree = registered
    root = next(iter(tree.stages))
    fail(store, [root])
    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(lambda _: tell_ended(store, [root], ON_SLURM), range(16)))
    assert lines(told) == ["study linear 0 1 6 0"]
    # Retried, it tells its end again.
    store.run(root).retry()
    renew_launches(store, [root])
    fail(store, [root])
    tell_ended(store, [root], ON_SLURM)
    assert lines(told) == ["study linear 0 1 6 0"] * 2


def test_a_job_that_ends_early_in_a_study_reads_few_states(
    registered: tuple[Store, Tree], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a study of 10,000 runs, each of 10,000 jobs would read all states otherwise."""
    store, tree = registered
    read: list[str] = []
    monkeypatch.setattr(on_end, "written_state", lambda run: read.append(run.key) or written_state(run))
    root = next(iter(tree.stages))
    store.run(root).begin(os.getpid())
    store.run(root).finish(None, {})
    tell_ended(store, [root], ON_SLURM)
    leaf = tree.stages[[*tree.stages][-1]]
    assert set(read) == {root, leaf.key, leaf.parent}


def test_the_last_command_of_a_job_tells_a_failed_branch_and_then_the_end(
    registered: tuple[Store, Tree], told: Path
) -> None:
    store, tree = registered
    root, *below = tree.stages
    branches = [key for key in below if tree.stages[key].parent == root]
    store.run(root).begin(os.getpid())
    store.run(root).finish(None, {})
    for number, key in enumerate(branches):
        submission = new_submission([key])
        write_submission(store, submission)
        store.run(key).queue(submission.token)
        fail(store, [key])
        for _ in range(2):
            assert epilogue.main([str(store.root), submission.token]) == 0
        assert len(lines(told)) == number + 1
    assert lines(told) == ["branch linear 1 1 2 3", "study linear 1 2 4 0"]


def test_a_failed_estimate_for_an_anchor_cuts_only_the_stages_that_need_it(tmp_path: Path, told: Path) -> None:
    anchor = {"finetune.anchor": {"ewc": 0, "sequences": 8}, "grid": {"finetune.anchor.ewc": [0, 1, 2]}}
    tree, store = plan_tiny(tmp_path / "runs", **anchor)
    begin_launch(store, tree, LINE.format(told=told))
    (estimate,) = (key for key, stage in tree.stages.items() if stage.stage == "fisher")
    finish_all(tree, store, lambda stage: stage in ("pretrain", "posttrain"))
    fail(store, [estimate])
    tell_ended(store, [estimate], {})
    finish(store.run(tree.trials[0].leaf))
    tell_ended(store, [tree.trials[0].leaf], {})
    assert lines(told) == ["branch tiny 2 1 2 1", "study tiny 3 1 2 0"]


def test_a_run_that_another_job_will_retry_has_not_ended(registered: tuple[Store, Tree], told: Path) -> None:
    store, tree = registered
    root, *below = tree.stages
    first, second = [key for key in below if tree.stages[key].parent == root]
    store.run(root).begin(os.getpid())
    store.run(root).finish(None, {})
    fail(store, [first])
    store.run(second).begin(os.getpid())
    store.run(second).fail("Connection reset", "node or network")
    tell_ended(store, [first], ON_SLURM)
    assert lines(told) == ["branch linear 1 2 4 0"]
    tell_ended(store, [second], ON_SLURM)
    assert lines(told)[1:] == ["study linear 1 2 4 0"]
