"""A process that hung, as its node or its file system did, and goes on after another has taken over its run."""

import importlib
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from retain.launchers.kinds import kind_of
from retain.launchers.stage.attempt import AttemptContext, make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.launchers.stage.training.checkpoints import CheckpointWriter, Snapshot
from retain.results.store.lease import this_process
from retain.results.store.runs import Run, Store
from retain.results.store.state import Progress
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import MissingResourceError, StageFailedError
from tests.results.runs import finish, kinds, problems, registered, write_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    tree, store = registered(tmp_path / "runs")
    return kinds(tree, store, "pretrain")[0]


def take_over(run: Run) -> None:
    """Claim the lease as a process of another machine does."""
    write_document(run.folder / "lease.9.json", asdict(replace(this_process(), host="elsewhere")))


def attempted(run: Run, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[AttemptContext], None]) -> None:
    """Make an attempt of which only this is done, and which must end without the run being done by it."""
    monkeypatch.setattr(importlib.import_module(kind_of(run.spec()).module), "attempt", attempt)
    with pytest.raises((StageFailedError, AttemptStopped)):
        make_attempt(Store(run.folder.parent), run.key, Ranks(), StopRequest())


@pytest.mark.parametrize("then", ["begin", "stop", "fail"])
def test_it_changes_nothing_of_the_attempt_of_the_other(then: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(context: AttemptContext) -> None:
        if then != "begin":
            context.begin()
        take_over(run)
        run.begin(1)
        if then == "begin":
            context.begin()
        raise AttemptStopped("SIGTERM") if then == "stop" else ValueError

    attempted(run, monkeypatch, attempt)
    state = run.state()
    assert (state.state, state.attempts[-1].pid, state.attempts[-1].end) == ("running", 1, None)


def test_it_says_so_where_the_store_was_moved_and_makes_no_new_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(context: AttemptContext) -> None:
        context.begin()
        run.folder.parent.rename(run.folder.parent.with_name("moved"))
        context.report(Progress(1, 2))
        writer = CheckpointWriter(run.checkpoint, 0, 1, context.may_write)
        writer.save(Snapshot(1, {}, {}, {}))
        with pytest.raises(MissingResourceError, match="No such file or directory"):
            writer.wait()
        with pytest.raises(StageFailedError, match=f"{run.folder} was moved or deleted; this process writes nothing"):
            context.finish(None, {})
        raise AttemptStopped("SIGTERM")

    attempted(run, monkeypatch, attempt)
    assert not run.folder.parent.exists()


def test_it_does_not_remove_the_weights_that_the_other_has_published(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def hang(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        take_over(run)
        finish(run)
        sync(descriptor)

    def attempt(context: AttemptContext) -> None:
        context.begin()
        model = write_model(run.folder / "model.of.the.first")
        monkeypatch.setattr(os, "fsync", hang)
        context.finish(model, {})

    attempted(run, monkeypatch, attempt)
    assert (run.is_done(), problems(Store(run.folder.parent))) == (True, {})
    assert (run.folder / "model.of.the.first").exists()
