"""What a search says of its points and its budget, while it goes on and at its end."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import retain
from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.attempt import run_search
from retain.launchers.search.budget import Budget, Spent, planned_cost, refuse_hours_on_cpus
from retain.launchers.search.console import print_summary
from retain.launchers.search.console import searching as showing
from retain.launchers.search.summary import summary_document
from retain.launchers.stage.signals import StopRequest
from retain.results.report.search import search_part
from retain.results.store.state import Attempt, Progress
from retain.results.store.study_files import POINTS_STUDY, SUMMARY, read_summary
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.base.files import write_json
from retain.sweeps.schema.execution import Execution
from tests.launchers.search.searches import THEORY, block, finish, searching, train_one
from tests.results.runs import put_state, registered
from tests.retain import retain_here, train_here
from tests.studies import tiny_study

HOURS = Budget(0.5, "gpuh", "H100")
TWO_POINTS = block(axes={"finetune.time": [1, 2]}, searcher="grid")


def test_hours_are_refused_where_stages_train_on_cpus() -> None:
    refuse_hours_on_cpus(HOURS, Execution(accelerator="auto"), gpus=True)
    refuse_hours_on_cpus(HOURS, Execution(accelerator="gpu"), gpus=False)
    refuse_hours_on_cpus(Budget(5, "tokens", "H100"), Execution(accelerator="cpu"), gpus=False)
    for accelerator, gpus in (("auto", False), ("cpu", True)):
        with pytest.raises(StudyError, match=r"--budget 0\.5gpuh: stages train on CPUs here, .* give tokens"):
            refuse_hours_on_cpus(HOURS, Execution.model_validate({"accelerator": accelerator}), gpus)


def test_hours_of_a_search_come_from_the_speeds_that_plan_takes_also_on_several_devices(tmp_path: Path) -> None:
    on_two = {"grid": {}, "execution": {"devices": 2}}
    tree, store = registered(tmp_path / "runs", **on_two)
    run = store.run(tree.trials[0].path[0])
    attempt = Attempt(0.0, "node", 1, world=2, end=1.0, cause="finished", device="NVIDIA H100 80GB HBM3")
    progress = Progress(tokens=1, total=1, tokens_per_second=5.0)
    put_state(run, replace(run.state(), state="done", attempts=(attempt,), progress=progress))
    study = str(tiny_study(tmp_path, seed=1, **on_two))
    planned, opened = retain.plan(study, store=store.root).totals, open_study(study, (), store.root)
    assert planned.measured["H100"] == 1
    assert planned_cost(opened.tree, (), store, HOURS, opened.file) == planned.gpu_hours


def test_a_budget_below_one_point_is_refused_with_what_a_point_takes(tmp_path: Path) -> None:
    search = searching("theory", tmp_path, TWO_POINTS, *THEORY)
    values = next(search.space.grid())
    needed = sum(stage.tokens for stage in search.searched.tree({"p0": values})[1].stages.values())
    short = Budget(needed - 1, "tokens", "H100")
    with pytest.raises(StudyError, match=r"--budget .* tokens: one point takes up to .* tokens; raise it"):
        run_search(search.searched, short, finish, StopRequest())
    assert searching("theory", tmp_path, TWO_POINTS, *THEORY).candidates == []
    enough = run_search(search.searched, Budget(needed, "tokens", "H100"), finish, StopRequest())
    assert len(enough.results()) == 1


def test_a_summary_says_by_how_much_its_budget_was_exceeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert HOURS.excess(Spent(10, 0.5, 1, 10)) is None
    assert HOURS.excess(Spent(10, 0.75, 1, 10)) == "0.25 GPU-hours"
    search = searching("theory", tmp_path, TWO_POINTS, *THEORY)
    finish(search)
    search.budget = Budget(search.spent().tokens - 200, "tokens", "H100")
    document = summary_document(search)
    write_json(search.searched.folder / SUMMARY, document)
    write_json(search.searched.folder / "damaged.json", document | {"maximised": 5})
    with pytest.raises(DamageError, match="maximised must be a list, and is 5; delete this file and search again"):
        read_summary(search.searched.folder / "damaged.json")
    print_summary(document)
    assert "(200 tokens over the budget)" in capsys.readouterr().out
    part = search_part(search.store.root, "theory")
    assert part is not None
    assert "(200 tokens over the budget)" in part.sentences[1]


def test_a_search_without_a_finished_point_says_that_none_has_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = searching("theory", tmp_path, block(axes={"pretrain.lr": [3]}, searcher="grid"), *THEORY[1:])
    finish(search)
    print_summary(summary_document(search))
    told = capsys.readouterr().out
    assert "1 point: 1 failed" in told
    assert "No point has finished." in told
    assert "onstraints" not in told


def test_a_search_whose_output_is_no_terminal_says_at_once_what_it_searches_and_how_to_follow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = searching("theory", tmp_path, TWO_POINTS, *THEORY)
    with showing(search):
        (line,) = capsys.readouterr().err.splitlines()
        assert " searching finetune.time for retained_posttraining_loss: 0 of 50 points done; to follow" in line
        finish(search)
        command = shlex.split(line.partition("stages: ")[2])
        assert "4 runs: 4 done" in retain_here(*command[1:]).stdout


def test_fewer_points_asked_for_than_are_there_are_told_apart(tmp_path: Path) -> None:
    finish(searching("theory", tmp_path, TWO_POINTS, *THEORY))
    fewer = searching("theory", tmp_path, block(axes={"finetune.time": [1, 2]}, searcher="grid", trials=1), *THEORY)
    document = summary_document(fewer)
    assert len(document["points"]) == 2
    assert document["ended"] == "at most 1 were asked for"


def test_a_point_that_was_given_up_but_ended_is_told_as_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = searching("theory", tmp_path, block(axes={"finetune.time": [1]}, searcher="grid"), *THEORY)
    with showing(search):
        for stage in iter(search.next_stage, None):
            if stage.stage == "finetune":
                search.history.pruned[stage.key] = "worse than its siblings"
                break
            train_one(search, stage)
    with showing(search):
        train_here(search.searched.folder / POINTS_STUDY, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if " p0 " in line]
    assert [line.split()[1] for line in lines] == ["pruned", "done"]
    (point,) = summary_document(search)["points"]
    assert point["state"] == "done"
    assert point["reason"] == "worse than its siblings, but its stages were finished all the same"
    assert point["reason"] in lines[1]
