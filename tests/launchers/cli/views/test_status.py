"""What `retain status` shows of many runs on a narrow terminal, and when `--watch` ends."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from retain.launchers.cli.app import main
from retain.launchers.cli.views import status as view
from retain.launchers.cli.views.status_table import reasons_below, status_table, summary_lines
from retain.launchers.planning.judged import begin_looks, make_look, planned_looks
from retain.launchers.planning.looks import Schedule
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.launchers.planning.register import register
from retain.launchers.study_status import Status, filtered, status_reader
from retain.results.store.runs import Store
from retain.results.store.state import Attempt, State
from retain.results.store.status import RunStatus, in_tree_order, study_seconds_left, study_status
from retain.sweeps.base.errors import StudyError
from retain.sweeps.tree.tree import Tree
from tests.results.runs import finish, finish_all, kinds, put_state, registered
from tests.studies import linear_study, tiny_study, tiny_tree

NARROW = 80
GRID = {"seed": [0, 1], "pretrain.exposure": [0, 0.5, 1], "posttrain.lr": [1e-4, 5e-4], "finetune.lr": [1e-4, 2e-4]}


@pytest.fixture
def many(tmp_path: Path) -> tuple[Tree, Store]:
    """42 runs, some done, one failed."""
    tree, store = registered(tmp_path / "runs", grid=GRID)
    for run in kinds(tree, store, "pretrain"):
        finish(run)
    failed = kinds(tree, store, "posttrain")[0]
    failed.begin(os.getpid())
    failed.fail("diverged: the training loss is nan at step 10; lower lr or lengthen warmup", "diverged")
    return tree, store


def drawn(rows: list[RunStatus], shown: list[RunStatus], width: int) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        table = status_table(rows, shown, width)
        table.title = None
        console.print(table)
    return capture.get().splitlines()


def test_a_narrow_terminal_breaks_no_key_no_word_and_no_line(many: tuple[Tree, Store]) -> None:
    tree, store = many
    rows = study_status(tree, store)
    header, *lines = drawn(rows, rows, NARROW)
    assert header.split() == ["run", "stage", "axes", "state", "attempts", "progress"]
    assert len(lines) == len(rows) == 42
    for line, row in zip(lines, in_tree_order(rows), strict=True):
        assert len(line) <= NARROW
        assert "…" not in line
        assert line.split()[:2] == [row.key[:8], row.stage]
    assert reasons_below(rows, NARROW)[0].startswith(next(row.key[:8] for row in rows if row.state == "failed"))


def test_a_wide_terminal_shows_reasons_in_the_table(many: tuple[Tree, Store]) -> None:
    tree, store = many
    rows = study_status(tree, store)
    assert "reason" in drawn(rows, rows, 300)[0]
    assert reasons_below(rows, 300) == []


def test_children_are_below_their_parents_with_the_axes_that_their_parents_lack(many: tuple[Tree, Store]) -> None:
    tree, store = many
    rows = study_status(tree, store)
    ordered = in_tree_order(list(reversed(rows)))
    above: list[str] = []
    for row in ordered:
        while above and above[-1] != row.parent:
            above.pop()
        assert (row.parent or None) == (above[-1] if above else None)
        above.append(row.key)
    leaf = next(line for line in drawn(rows, rows, NARROW) if " finetune" in line)
    assert re.search(r"  finetune  lr=0.0001 ", leaf)
    alone = [row for row in rows if row.stage == "finetune"]
    assert "pretrain.exposure=" in drawn(rows, alone, 200)[1]


def test_each_stage_has_a_line_with_counts_in_the_order_of_the_chain(many: tuple[Tree, Store]) -> None:
    tree, store = many
    first, *stages = summary_lines(study_status(tree, store), 3700.0)
    assert first == "42 runs: 6 done, 1 failed, 35 planned; about 1h 01m left"
    assert [line.split()[0] for line in stages] == ["pretrain", "posttrain", "finetune"]
    assert stages[1].endswith("1 failed, 11 planned")


def test_a_stage_that_some_trials_leave_out_has_its_line_where_the_chain_has_it(tmp_path: Path) -> None:
    midtrain = {"corpus": "general", "tokens": 2560, "lr": 1e-3, "batch": 8}
    chain = ["pretrain", "midtrain", "posttrain", "finetune"]
    tree, store = registered(tmp_path, grid={"midtrain.tokens": [0, 2560]}, stages=chain, midtrain=midtrain)
    assert [line.split()[0] for line in summary_lines(study_status(tree, store))[1:]] == chain


def test_filters_choose_runs_and_name_what_there_is(
    many: tuple[Tree, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = many
    status = Status("tiny", study_status(tree, store), [], [], None)
    assert [row.state for row in filtered(status, ["failed"], [], []).runs] == ["failed"]
    chosen = filtered(status, [], ["finetune"], ["finetune.lr=1e-4", "seed=1", "pretrain.exposure=0.50"]).runs
    assert [(row.axes["finetune.lr"], row.axes["pretrain.exposure"], row.axes["seed"]) for row in chosen] == [
        (1e-4, 0.5, 1)
    ] * 2
    both = filtered(status, [], ["pretrain"], ["seed=0", "seed=1"]).runs
    assert len(both) == 6
    for wrong, message in (
        ((["finished"], [], []), "--state finished: unknown state; the states are cancelled, "),
        (([], ["tune"], []), "--stage tune: unknown stage; the stages are finetune, posttrain, pretrain"),
        (([], [], ["lr=1"]), "--where lr=1: a filter is AXIS=VALUE, and the axes are "),
        (([], [], ["seed=7"]), "--where seed=7: no run has this value; the values are 0, 1"),
    ):
        with pytest.raises(StudyError, match=re.escape(message)):
            filtered(status, *wrong)
    verb = ["status", "--store", str(store.root), "--state", "failed", "--stage", "posttrain", "--json"]
    assert main(verb) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in document["runs"]] == ["failed"]
    assert document["runs"][0]["parent"] in tree.stages


def test_runs_are_filtered_by_the_names_of_cases_with_the_runs_that_other_cases_share(tmp_path: Path) -> None:
    cases = {"strength": {"weak": {"finetune.lr": 1e-5}, "strong": {"finetune.lr": 1e-3}}}
    more = {"corpora.more": {"files": str(tmp_path / "general.txt"), "heldout": 0.1}, "evaluate": {"corpora": ["more"]}}
    study = tiny_study(tmp_path, grid={"pretrain.exposure": [0, 1]}, cases=cases, **more)

    def chosen(*where: str) -> list[RunStatus]:
        return status_reader(str(study), (), tmp_path / "runs", where=where)().runs

    weak = [row for row in chosen("strength=weak") if row.stage != "evaluate"]
    assert [row.stage for row in weak] == ["pretrain", "posttrain", "finetune"] * 2
    assert {row.axes["finetune.lr"] for row in weak if row.stage == "finetune"} == {1e-5}
    assert len(chosen("strength=weak", "pretrain.exposure=1")) * 2 == len(chosen("strength=weak"))
    assert len(chosen("strength=weak", "strength=strong")) == len(chosen())
    measured = [row for row in chosen("strength=strong") if row.stage == "evaluate"]
    assert {row.parent for row in measured} == {row.key for row in chosen("strength=strong") if row.stage != "evaluate"}
    with pytest.raises(StudyError, match="--where strength=best: no run has this value; the values are weak, strong"):
        chosen("strength=best")


def test_runs_are_filtered_by_lists_nothing_and_truth_as_a_study_file_writes_them(tmp_path: Path) -> None:
    grid = {
        "pretrain.exposure_schedule": ["uniform", [0.25, 0.5]],
        "posttrain.max_tokens": [None, 5120],
        "pretrain.repeat": [True],
        "finetune.lr": [1e-3],
    }
    tree = tiny_tree(**{"pretrain.exposure": 0.5, "grid": grid})
    status = Status("tiny", study_status(tree, Store(tmp_path)), [], [], None)
    for where, count in (
        (["pretrain.exposure_schedule=[0.25,0.5]"], 5),
        (["posttrain.max_tokens=null"], 4),
        (["pretrain.repeat=true"], 10),
    ):
        assert len(filtered(status, [], [], where).runs) == count, where
    with pytest.raises(StudyError, match=re.escape("the values are uniform, [0.25, 0.5]")):
        filtered(status, [], [], ["pretrain.exposure_schedule=[0, 1]"])


def test_ended_runs_are_over_also_where_slurm_does_not_answer(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs")
    rows = [replace(row, state="done") for row in study_status(tree, store)]
    assert Status("tiny", rows, [], [], "SLURM: no answer").is_over
    assert not Status("tiny", [*rows[:-1], replace(rows[-1], state="queued")], [], [], "SLURM: no answer").is_over


def test_the_time_left_counts_runs_to_come_and_no_path_faster_than_its_runs_one_after_the_other() -> None:
    row = RunStatus("a", "pretrain", {}, "running", 1, 0.5, 500, 1000, None, 100.0, 5.0, None, None, None, None)
    below = replace(row, key="b", stage="finetune", state="planned", tokens=0, tokens_per_second=0.0, parent="a")
    blocked = replace(below, key="c", reason="blocked: pretrain d failed")
    assert study_seconds_left([row, below, blocked]) == pytest.approx(15)
    other = replace(row, key="e", tokens=900)
    assert study_seconds_left([row, other]) == pytest.approx(5)  # not 3: `row` alone takes 5 s
    assert study_seconds_left([below]) is None


def test_watching_a_planned_study_waits_until_its_runs_have_begun_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = registered(tmp_path / "runs", grid={})
    monkeypatch.setattr(view, "WATCH_EVERY_S", 0.01)
    reads = 0

    def read() -> Status:
        nonlocal reads
        reads += 1
        if reads in (3, 4, 5):
            finish(kinds(tree, store, ("pretrain", "posttrain", "finetune")[reads - 3])[0])
        return Status("tiny", study_status(tree, store), [], [], None)

    view.watch_status(read, idle_s=60)
    assert reads == 5
    printed = capsys.readouterr().out
    assert "3 runs: 3 done" in printed
    # Standard output is no terminal here: each change of the counts is a line.
    changes = [line for line in printed.splitlines() if line.startswith("3 runs: ")]
    assert [line.partition(";")[0] for line in changes[:3]] == [
        "3 runs: 3 planned",
        "3 runs: 1 done, 2 planned",
        "3 runs: 2 done, 1 planned",
    ]


def test_watching_ends_with_a_sentence_if_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(view, "WATCH_EVERY_S", 0.01)
    study = linear_study(tmp_path)
    view.watch_status(status_reader(str(study), (), tmp_path / "runs"), idle_s=0.05)
    assert (
        "nothing was queued or running for 0 s; start training with retain run or retain submit"
        in capsys.readouterr().out
    )


def test_what_is_watched_goes_on_until_the_last_look_and_has_the_seeds_that_looks_add(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path, grid={"pretrain.exposure": [0, 1], "seed": [0]}), tmp_path / "runs"
    read = status_reader(str(study), (), store)

    def seeds() -> set[int]:
        return {row.axes["seed"] for row in read().runs}

    assert (seeds(), read().has_look_left) == ({0}, False)
    prepare_study(str(study), (), store)
    planned = planned_looks(str(study), (), store, 6, None)
    assert isinstance(planned, Schedule)
    looks = begin_looks(str(study), (), store, planned)
    assert seeds() == {0, 1}
    opened = open_study(str(study), (), store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    finish_all(opened.tree, opened.store)
    assert not read().is_over
    make_look(opened, looks)
    assert seeds() == {0, 1, 2, 3}


@pytest.mark.parametrize("joules", [None, 4.32e6])
def test_device_time_and_energy_of_each_stage_are_below_the_table_and_in_the_document(
    joules: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = registered(tmp_path / "runs", grid={})
    for run in kinds(tree, store, "pretrain"):
        attempt = Attempt(0.5, "a", 1, world=2, end=1800.5, cause="finished", joules=joules)
        put_state(run, State("done", (attempt,)))
    view.print_status(status_reader(None, (), store.root)())
    told = "" if joules is None else "; energy, where devices measure it: 1.2 kWh"
    assert f"device time: 1h 00m (pretrain 1h 00m){told}\n" in capsys.readouterr().out
    assert main(["status", "--store", str(store.root), "--stage", "pretrain", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (cost,) = document["cost"]
    assert cost == {"stage": "pretrain", "attempts": 1, "device_hours": 1.0, "lost_hours": 0.0, "joules": joules}
    (attempted,) = document["runs"][0]["costs"]
    assert (attempted["device_hours"], attempted["joules"]) == (1.0, joules)
