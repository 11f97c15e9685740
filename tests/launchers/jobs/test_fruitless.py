"""When a job that was stopped again and again gives up, instead of going back to the queue for ever."""

import os
from pathlib import Path

import pytest

from retain.launchers.jobs.job import EARLY, FRUITLESS, UNSAVED, fruitless
from retain.launchers.kinds import kind_of
from retain.launchers.planning.register import register
from retain.results.store.runs import Run, Store
from retain.results.store.state import Progress
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.tree import expand
from tests.results.runs import registered
from tests.studies import linear_study


def stopped(run: Run, begins: int, ends: int) -> None:
    """An attempt that began with so many tokens seen, and was stopped after more."""
    run.begin(os.getpid(), begins)
    run.report(Progress(ends, 1000))
    run.stop("SIGUSR2")


def gives_up(run: Run, early: bool = False) -> bool:
    return bool(fruitless(run.state(), kind_of(run.spec()).resumes, early))


def test_a_stage_that_saves_goes_on_while_its_attempts_get_further(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    run = store.run(next(iter(tree.stages)))
    for attempt in range(6):
        stopped(run, 100 * attempt, 100 * (attempt + 1))
        assert not gives_up(run)
    for _ in range(FRUITLESS):
        assert not gives_up(run)
        stopped(run, 600, 600)
    assert gives_up(run)


def test_preemptions_before_the_first_step_end_a_run_only_when_they_are_many(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    run = store.run(next(iter(tree.stages)))
    for _ in range(EARLY):
        assert not gives_up(run, early=True)
        stopped(run, 0, 0)
    assert gives_up(run, early=True)
    stopped(run, 0, 100)
    assert not gives_up(run, early=True)


@pytest.mark.parametrize("ends", [[400] * UNSAVED, [100, 900, 500, 200]])
def test_a_stage_that_saves_nothing_gives_up_however_far_each_attempt_gets(ends: list[int], tmp_path: Path) -> None:
    """A linear stage begins again in each attempt, so none of them gets further than its walltime."""
    file, facts, store = read_study(str(linear_study(tmp_path / "study"))), Facts("", 0, {}), Store(tmp_path)
    tree = expand(file, facts)
    register(tree, file, facts, store)
    run = store.run(next(iter(tree.stages)))
    for end in ends:
        assert not gives_up(run)
        stopped(run, 0, end)
    assert gives_up(run)
