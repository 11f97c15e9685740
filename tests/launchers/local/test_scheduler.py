"""What becomes of a run whose processes have ended, and which run starts next."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retain.launchers.local import launcher
from retain.launchers.local.devices import Slot
from retain.launchers.local.launcher import Scheduler, WorkerGroup
from retain.launchers.stage.failures import BUG, DISK, DIVERGED, GPU_MEMORY, HOST_MEMORY, NODE
from retain.launchers.stage.log import BUSY, FAILED, NO_ROOM, STOPPED
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.sweeps.tree.tree import Tree
from tests.results.runs import finish, kinds, registered


def scheduler_of(tree: Tree, store: Store, slots: int = 1, forgiving: bool = False) -> Scheduler:
    return Scheduler(tree, store, [Slot({})] * slots, forgiving)


def ends(scheduler: Scheduler, run: Run, code: int) -> None:
    """Let the scheduler see that the processes of a run have ended with this code."""
    scheduler.waiting.remove(run.key)
    scheduler.groups[run.key] = WorkerGroup([], 0, multiprocessing.Pipe()[0], code=code)
    scheduler.collect()
    assert not scheduler.groups


def fails(failure: str, times: int = 1) -> Callable[[Run], None]:
    """What a run has done that has failed this many times in this way."""

    def fail(run: Run) -> None:
        for _ in range(times):
            run.begin(os.getpid())
            run.fail(f"{failure}: why", failure)

    return fail


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Tree, Store, Run]:
    """The tiny study, registered, and one of its pretrainings."""
    tree, store = registered(tmp_path / "runs")
    return tree, store, kinds(tree, store, "pretrain")[0]


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (lambda run: run.stop("SIGTERM"), STOPPED),
        (lambda run: None, BUSY),
        (fails(NODE), FAILED),
        (fails(GPU_MEMORY), FAILED),
    ],
    ids=["stopped", "another process has it", "the network failed once", "the GPU was too small"],
)
def test_a_run_that_may_go_on_waits_for_another_attempt_before_all_others(
    before: Callable[[Run], object], code: int, planned: tuple[Tree, Store, Run]
) -> None:
    tree, store, run = planned
    scheduler = scheduler_of(tree, store)
    run.begin(os.getpid())
    before(run)
    ends(scheduler, run, code)
    assert scheduler.waiting[0] == run.key
    assert not scheduler.ended
    assert not scheduler.failed
    assert run.adapted() == (4 if run.state().attempts[-1].failure == GPU_MEMORY else None)


@pytest.mark.parametrize(
    ("before", "code", "failure"),
    [
        (fails(NODE, times=2), FAILED, NODE),
        (fails(DIVERGED), FAILED, DIVERGED),
        (lambda run: run.begin(os.getpid()), FAILED, BUG),
        (lambda run: run.begin(os.getpid()), -9, HOST_MEMORY),
        (lambda run: run.begin(os.getpid()), -11, BUG),
        (lambda run: run.begin(os.getpid()), NO_ROOM, DISK),
    ],
    ids=["the network failed again", "diverged", "exited", "killed", "crashed", "the disk was full"],
)
def test_a_run_that_failed_or_died_has_a_class_and_a_cause_and_ends_its_branch_alone(
    before: Callable[[Run], object], code: int, failure: str, planned: tuple[Tree, Store, Run]
) -> None:
    tree, store, run = planned
    scheduler = scheduler_of(tree, store)
    before(run)
    ends(scheduler, run, code)
    state = run.state()
    assert (state.state, state.attempts[-1].failure) == ("failed", failure)
    assert (state.reason or "").startswith(f"{failure}: ")
    assert scheduler.failed == [run.key]
    scheduler.slots = []
    scheduler.start_ready()
    other = kinds(tree, store, "pretrain")[1].key
    branch = {key for key, stage in tree.stages.items() if other in stage.needs}
    assert set(scheduler.waiting) == {
        other,
        *branch,
        *(key for key, stage in tree.stages.items() if branch & {*stage.needs}),
    }


def test_a_killed_process_is_replaced_only_in_a_drill_or_if_another_process_has_its_run(
    planned: tuple[Tree, Store, Run],
) -> None:
    tree, store, run = planned
    drill = scheduler_of(tree, store, forgiving=True)
    run.begin(os.getpid())
    ends(drill, run, -9)
    assert drill.waiting[0] == run.key
    scheduler = scheduler_of(tree, store)
    lease = take_lease(run.lease)
    assert lease
    ends(scheduler, run, FAILED)
    assert scheduler.waiting[0] == run.key
    assert run.state().state == "running"


def test_a_process_that_outlives_a_failed_one_of_its_run_is_ended(
    planned: tuple[Tree, Store, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, store, run = planned
    monkeypatch.setattr(launcher, "GRACE_S", 0.0)
    scheduler, fork = scheduler_of(tree, store), multiprocessing.get_context("fork")
    run.begin(os.getpid(), world=2)
    ranks = [fork.Process(target=os._exit, args=(FAILED,)), fork.Process(target=time.sleep, args=(600,))]
    for rank in ranks:
        rank.start()
    scheduler.waiting.remove(run.key)
    scheduler.groups[run.key] = WorkerGroup(ranks, 0, multiprocessing.Pipe()[0])  # type: ignore[arg-type]
    while scheduler.groups:
        scheduler.collect()
    assert [rank.exitcode for rank in ranks] == [FAILED, -9]
    assert "its process exited with code 1" in (run.state().reason or "")


def test_the_stage_with_the_most_tokens_below_it_starts_first(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs", grid={"pretrain.exposure": [0], "finetune.tokens": [640, 5120, 1280]})
    (pretrain,), (posttrain,), tunings = (kinds(tree, store, stage) for stage in ("pretrain", "posttrain", "finetune"))
    longest_first = sorted(tunings, key=lambda run: -tree.stages[run.key].tokens)
    assert len({tree.stages[run.key].tokens for run in tunings}) == 3
    waiting = scheduler_of(tree, store).waiting
    assert waiting == [run.key for run in (pretrain, posttrain, *longest_first)]


def test_siblings_are_shared_out_over_the_slots_before_a_process_does_several(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs", grid={"finetune.lr": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]})
    finish(kinds(tree, store, "pretrain")[0])
    finish(kinds(tree, store, "posttrain")[0])
    for slots, pack, runs in ((1, 8, 5), (1, 3, 3), (2, 8, 3), (5, 8, 1)):
        scheduler = scheduler_of(tree, store, slots)
        assert scheduler._runs(scheduler.waiting.pop(0), pack) == runs


def test_a_run_that_another_launcher_trains_is_waited_for_until_that_has_ended_it(
    planned: tuple[Tree, Store, Run],
) -> None:
    tree, store, _ = planned
    done, failed = kinds(tree, store, "pretrain")
    scheduler = scheduler_of(tree, store)
    leases = [take_lease(one.lease) for one in (done, failed)]
    scheduler.start_ready()
    assert {done.key, failed.key} <= set(scheduler.waiting)
    assert not scheduler.groups
    assert (scheduler.states[done.key].reason or "").startswith("waits: process ")
    finish(done)
    fails(DIVERGED)(failed)
    for lease in leases:
        assert lease
        lease.release()
    scheduler.slots = []
    scheduler.start_ready()
    assert {done.key, failed.key}.isdisjoint(scheduler.waiting)
    assert scheduler.states[done.key].state == "done"
    assert failed.key in scheduler.ended
    assert done.key not in scheduler.ended


def test_a_run_that_another_launcher_has_left_is_trained_here(planned: tuple[Tree, Store, Run]) -> None:
    tree, store, run = planned
    scheduler = scheduler_of(tree, store, slots=0)
    lease = take_lease(run.lease)
    assert lease
    scheduler.elsewhere.add(run.key)
    scheduler.start_ready()
    assert run.key in scheduler.elsewhere
    run.begin(os.getpid())
    run.stop("SIGTERM")
    lease.release()
    scheduler.start_ready()
    assert run.key in scheduler.waiting
    assert run.key not in scheduler.elsewhere


def test_an_interrupted_launcher_stops_its_processes_and_leaves_their_runs_to_be_resumed(
    planned: tuple[Tree, Store, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store, run = planned
    scheduler = scheduler_of(tree, store)
    # Not forked: it would have the handlers of signals that other tests leave in this process.
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    run.begin(os.getpid())
    scheduler.waiting.remove(run.key)
    scheduler.groups[run.key] = WorkerGroup([process], 0, multiprocessing.Pipe()[0])  # type: ignore[list-item]
    scheduler.stop_all("interrupted")
    assert process.exitcode == -15
    assert (run.state().state, run.state().attempts[-1].cause) == ("planned", "interrupted")
    assert scheduler.states[run.key].state == "planned"
    assert not scheduler.groups
    assert f"checkpoints of pretrain {run.key[:8]}" in capsys.readouterr().err


def test_only_siblings_that_are_executed_alike_share_a_process(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    scheduler = scheduler_of(tree, store)
    one, sibling, *others = (run.key for run in kinds(tree, store, "finetune"))
    assert scheduler._are_siblings(one, sibling)
    assert not any(scheduler._are_siblings(one, other) for other in others)
    posttrains = [run.key for run in kinds(tree, store, "posttrain")]
    assert not scheduler._are_siblings(*posttrains)
    assert not any(scheduler._are_siblings(one, other) for other in posttrains)
    spec = store.run(sibling).spec()
    store.register(sibling, spec | {"execution": spec["execution"] | {"micro_batch": 2}})
    assert not scheduler._are_siblings(one, sibling)
