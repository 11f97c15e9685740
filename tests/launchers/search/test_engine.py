"""The course of a search, whoever trains its stages: what it finds, what it spends, and how it goes on."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.attempt import run_search
from retain.launchers.search.budget import Budget, parse_budget
from retain.launchers.search.derived_studies import SearchedStudy, open_search
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.launchers.search.request import SearchRequest, register_search
from retain.launchers.search.summary import summary_document
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.results.store.lease import take_lease
from retain.results.store.loss_table import trial_rows
from retain.results.store.runs import Run
from retain.results.store.state import State
from retain.results.store.study_files import search_run
from retain.results.tensorboard.views import link_runs
from retain.sweeps.base.errors import StudyError
from tests.conftest import Trained
from tests.launchers.search.searches import THEORY, block, finish, searching
from tests.results.runs import finish as finish_run
from tests.results.runs import put_state
from tests.retain import retain_here
from tests.studies import tiny_fields, tiny_study

OPTIMUM = block(axes={"pretrain.exposure": {"uniform": [0, 0.95]}}, trials=6, searcher="tpe")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A finished search of the theory study, for all tests: read it, do not write into its store."""
    search = searching("theory", tmp_path_factory.mktemp("theory"), OPTIMUM, *THEORY)
    finish(search)
    return search


def test_a_search_finds_the_planted_optimum_of_the_theory(found: Search) -> None:
    (best,) = summary_document(found)["recommended"]
    # α* of the study: above it nothing of D_post is forgotten.
    assert best["values"]["pretrain.exposure"] > 0.758
    exposures = [one.point.values["pretrain.exposure"] for one in found.candidates]
    assert len(set(exposures)) == 6
    assert all(float(f"{value:.3g}") == value for value in exposures)


def test_the_recommended_recipe_is_the_best_mean_over_seeds_with_its_interval(tmp_path: Path) -> None:
    replicated = block(axes={"finetune.time": [1, 2]}, searcher="grid", seeds=[0, 1])
    search = searching("theory", tmp_path, replicated, *THEORY)
    finish(search)
    (best,) = summary_document(search)["recommended"]
    opened = open_study(str(search.searched.folder / "search.yaml"), (), tmp_path)
    name = "retained_posttraining_loss"
    losses: dict[str, list[float]] = {}
    for row in trial_rows(opened.tree, search.store):
        losses.setdefault(row["axes"]["point"], []).append(row[name])
    assert [len(of_seeds) for of_seeds in losses.values()] == [2, 2]
    assert best["losses"][name]["mean"] == pytest.approx(min(sum(pair) / 2 for pair in losses.values()))
    assert best["losses"][name]["low"] <= best["losses"][name]["mean"] <= best["losses"][name]["high"]
    assert best["losses"][name]["seeds"] == 2


def test_tensorboard_shows_the_best_so_far_and_the_points_over_the_tokens_spent(found: Search, tmp_path: Path) -> None:
    shutil.copytree(found.store.root, tmp_path / "store")
    for study in ("theory", tmp_path / "store" / "studies" / "theory" / "search.yaml"):
        opened = open_study(str(study), (), tmp_path / "store")
        view = link_runs(opened.tree, opened.store)
        assert link_runs(opened.tree, opened.store) == view
        events = EventAccumulator(str(view / "search-curves")).Reload()
        best = events.Scalars("search/best objective")
        assert [point.value for point in best] == sorted((point.value for point in best), reverse=True)
        assert best[-1].value == pytest.approx(min(one.scores[0] for one in found.results()))
        assert [point.step for point in best] == sorted({point.step for point in best})
        assert best[-1].step == found.spent().tokens
        assert [point.value for point in events.Scalars("search/points done")] == [1, 2, 3, 4, 5, 6]


def test_what_a_search_says_when_it_is_started_again_is_the_same(found: Search) -> None:
    history, note = open_history(found.history.path, found.searched.identity())
    assert note is None
    assert history == found.history
    again = Search(found.searched, history, None)
    assert again.next_stage() is None
    assert again.finished()
    assert summary_document(again) == summary_document(found)


def test_a_budget_is_kept_and_spent_on_what_is_cheap(tmp_path: Path) -> None:
    axes = {"pretrain.exposure": {"uniform": [0, 0.95]}, "finetune.time": {"uniform": [1, 4]}}
    families = block(axes=axes, trials=20, searcher="random", per_pretraining=3, per_posttraining=3)
    search = searching("theory", tmp_path, families, *THEORY, budget=Budget(13_000, "tokens", "H100"))
    finish(search)
    spent = search.spent()
    assert spent.tokens <= 13_000
    assert search.exhausted == "the budget of 13k tokens allows no further point"
    exposures = [one.point.values["pretrain.exposure"] for one in search.candidates]
    # A pretraining takes some 5,000 steps, a fine-tuning 200 at most: two pretrainings, and the rest below them.
    assert len(set(exposures)) == 2
    assert len(exposures) > 6
    # Started again with more, it goes on; what is there costs nothing.
    more = searching("theory", tmp_path, families, *THEORY)
    assert [one.point.values for one in more.candidates] == [one.point.values for one in search.candidates]
    assert more.spent() == spent


def test_stages_that_the_store_has_already_cost_a_search_nothing(trained: Trained, tmp_path: Path) -> None:
    search = over_the_grid(trained, tmp_path)
    assert search.spent().tokens == search.spent().stages == 0
    assert len(search.results()) == 4


def test_the_confirmation_names_the_best_of_a_grid_that_the_store_has(trained: Trained, tmp_path: Path) -> None:
    search = over_the_grid(trained, tmp_path)
    summary = summary_document(search)
    # Both searched the same points, so both have the same best; beside it stands the study's own recipe, at λ = 0.
    confirm = yaml.safe_load(Path(summary["confirm"]).read_text())
    best = summary["recommended"][0]["values"]["pretrain.exposure"]
    assert confirm["cases"]["recipe"]["recommended"] == {"pretrain.exposure": [best]}
    told = Path(summary["confirm"]).read_text()
    assert "# grid-best is the same recipe as recommended." in told
    # The fine-tunings are the grid's, for each recipe, on seeds that nothing was chosen by.
    assert confirm["grid"] == {"seed": [1, 2, 3], "finetune.lr": [5e-4, 2e-3]}
    opened = open_study(summary["confirm"], (), search.store.root)
    assert {trial.axes["seed"] for trial in opened.tree.trials} == {1, 2, 3}


def test_the_best_of_the_grid_is_a_recipe_of_its_own_where_the_search_found_another(
    trained: Trained, tmp_path: Path
) -> None:
    search = over_the_grid(trained, tmp_path, axes={"posttrain.lr": [1e-4]}, trials=1)
    confirm = yaml.safe_load(Path(summary_document(search)["confirm"]).read_text())
    recipes = confirm["cases"]["recipe"]
    rows = trial_rows(open_study(str(trained.study), (), trained.store).tree, search.store)
    best = min(rows, key=lambda row: row["retained_posttraining_loss"])["axes"]["pretrain.exposure"]
    # What the grid does not vary is the study's own.
    assert recipes["grid-best"] == {"posttrain.lr": [1e-3], "pretrain.exposure": [best]}
    assert recipes["recommended"] == {"posttrain.lr": [1e-4]}
    assert recipes["default"] == {"posttrain.lr": [1e-3]}


def test_what_a_search_derives_names_the_files_of_its_study_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", str(tmp_path))
    music = {"files": "$MINE/music.jsonl", "heldout": {"files": ["chemistry.jsonl"]}}
    study = tiny_study(tmp_path, **{"corpora.music": music})
    searched = open_search(str(study), [block(axes={"finetune.lr": [1e-3, 2e-3]})], tmp_path / "runs", None)
    found = searched.base["corpora"]["music"]
    assert (found["files"], found["heldout"]["files"]) == (
        str(tmp_path / "music.jsonl"),
        [str(tmp_path / "chemistry.jsonl")],
    )


def test_without_the_grid_in_the_store_nothing_is_said_of_it(found: Search) -> None:
    confirm = Path(summary_document(found)["confirm"])
    fields = yaml.safe_load(confirm.read_text())
    assert list(fields["cases"]["recipe"]) == ["recommended", "default"]
    # Neither the search's seed nor one of the grid's.
    assert fields["grid"] == {"seed": [3, 4, 5]}


def test_a_failed_point_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    search = searching("theory", tmp_path, block(axes={"pretrain.lr": [0.02, 3]}, searcher="grid"), *THEORY[1:])
    finish(search)
    document = summary_document(search)
    assert [point["state"] for point in document["points"]] == ["done", "failed"]
    assert "diverged" in document["points"][1]["reason"]
    assert document["recommended"][0]["point"] == "p0"


def test_a_start_plans_what_failed_or_was_skipped_again_even_if_it_is_stopped_at_once(tmp_path: Path) -> None:
    search = searching("theory", tmp_path, block(axes={"pretrain.exposure": [0.9]}, searcher="grid"), *THEORY)
    assert search.next_stage() is not None
    runs = [search.store.run(key) for key in search.states]
    for run in runs:
        put_state(run, State("failed" if run.spec()["parent"] is None else "skipped"))

    def stopped(search: Search) -> None:
        raise KeyboardInterrupt

    for retry in (True, False):  # the second life of a job tries nothing anew that has failed in the first
        with pytest.raises(KeyboardInterrupt):
            run_search(search.searched, None, stopped, StopRequest(), retry=retry)
        assert [run.state().state for run in runs] == ["planned"] * 3


class Killed(BaseException):
    """What ends a driver without a word."""


@pytest.mark.parametrize("end", [None, AttemptStopped("SIGINT"), Killed()], ids=["ended", "stopped", "killed"])
def test_every_start_of_a_search_here_tries_again_what_failed_however_the_one_before_ended(
    end: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_search("theory", [block(axes={"pretrain.exposure": [0.9]}), *THEORY], tmp_path, lambda *_: None)
    seen: list[str] = []

    def train(search: Search, *_: object) -> None:
        stage = search.next_stage()
        assert stage is not None
        seen.append(search.store.run(stage.key).state().state)
        put_state(search.store.run(stage.key), State("failed"))
        if end is not None:
            raise end

    monkeypatch.setattr("retain.launchers.search.attempt.train_on_ray", train)
    for _ in range(2):
        run = register_search(opened, SearchRequest("ray", None, "H100"))
        with contextlib.suppress(AttemptStopped, Killed):
            make_attempt(opened.store, run.key, Ranks(), StopRequest())
    assert seen == ["planned", "planned"]


@pytest.mark.parametrize("first", ["before", "meanwhile"])
def test_a_second_search_at_the_same_time_is_told_which_process_has_the_study(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(searched: SearchedStudy, request: SearchRequest) -> Run:
        run = register_search(searched, request)
        assert take_lease(run.lease)
        return run

    monkeypatch.setattr("retain.launchers.search.request.register_search", taken)
    if first == "before":
        taken(open_search("theory", [OPTIMUM], tmp_path, lambda *_: None), SearchRequest("ray", None, "H100"))
    said = retain_here("search", "theory", OPTIMUM, "--store", tmp_path, code=StudyError.exit_code).stderr
    who = f"process {os.getpid()} on this machine"
    assert f"theory: {who} is searching this study in this store; wait for it, or cancel the search" in said


def test_a_changed_study_begins_a_new_history_and_keeps_the_old_one(tmp_path: Path) -> None:
    one_point = block(axes={"pretrain.exposure": [0.9]}, searcher="grid")
    search = searching("theory", tmp_path, one_point, *THEORY)
    search.next_stage()
    assert len(search.history.points) == 1
    changed = open_search("theory", [one_point, "pretrain.lr=0.04"], tmp_path, lambda *_: None)
    history, note = open_history(search.history.path, changed.identity())
    assert history.points == []
    assert note is not None
    assert "the study has changed" in note
    assert len(list(search.history.path.parent.glob("search.*.json"))) == 1


def test_a_study_that_is_changed_back_goes_on_with_its_history_and_none_is_ever_lost(tmp_path: Path) -> None:
    def searched(trials: int, *changes: str) -> Search:
        axes = block(axes={"pretrain.exposure": {"uniform": [0, 0.95]}}, trials=trials, searcher="random")
        search = searching("theory", tmp_path, axes, *THEORY, *changes)
        finish(search)
        return search

    first, other = searched(3), searched(1, "finetune.time=2")
    assert (len(first.candidates), len(other.candidates)) == (3, 1)
    for _ in range(2):
        back = searched(2)
        assert [one.point for one in back.candidates] == [one.point for one in first.candidates]
        assert back.spent() == first.spent()
        assert searched(1, "finetune.time=2").history == other.history
    kept = first.history.path
    (aside,) = kept.parent.glob("search.*.json")
    both = {json.loads(path.read_text())["identity"]: path.read_text() for path in (kept, aside)}
    # A file that lies where the other history is to be put aside, as none should, is kept too.
    kept.with_name(f"search.{other.history.identity}.json").write_text("kept")
    searched(2)
    numbered = kept.with_name(f"search.{other.history.identity}-2.json")
    assert numbered.read_text() == both[other.history.identity]
    assert kept.with_name(f"search.{other.history.identity}.json").read_text() == "kept"
    assert json.loads(kept.read_text()) == json.loads(both[first.history.identity])


def test_a_history_that_is_taken_up_again_says_so_and_brings_its_curves(found: Search, tmp_path: Path) -> None:
    shutil.copytree(found.store.root, tmp_path / "store")
    changed = [OPTIMUM, *THEORY, "finetune.time=2", "search.trials=1"]
    finish(searching("theory", tmp_path / "store", *changed))
    opened = open_search("theory", [OPTIMUM, *THEORY], tmp_path / "store", lambda *_: None)
    _, note = open_history(opened.folder / "search.json", opened.identity())
    assert note is not None
    assert "it is the same as in an earlier search, which is continued" in note
    open_history(opened.folder / "search.json", "another")
    run_search(opened, None, lambda search: pytest.fail("all of it is done"), StopRequest())
    done = EventAccumulator(str(search_run(opened.store, opened.name).folder)).Reload().Scalars("search/points done")
    assert [point.value for point in done] == [1, 2, 3, 4, 5, 6]


def test_what_a_study_gives_to_a_searched_field_changes_no_history(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)

    def identity(axes: dict[str, object], **fields: object) -> str:
        study.write_text(yaml.safe_dump(tiny_fields(**{"search": {"axes": axes}, "grid": {}, **fields})))
        return open_search(str(study), (), tmp_path / "runs", None).identity()

    exposure: dict[str, object] = {"pretrain.exposure": {"uniform": [0, 1]}}
    dropout: dict[str, object] = {"posttrain.dropout": [0, 0.2]}
    assert identity(exposure) == identity(exposure, **{"pretrain.exposure": 0.5})
    assert identity(exposure) != identity(exposure, **{"posttrain.dropout": 0.1})
    assert identity(dropout) == identity(dropout, **{"posttrain.dropout": 0.1})
    assert identity(exposure) != identity(dropout)


def test_budgets_are_tokens_or_hours() -> None:
    assert parse_budget("5Mtokens", "H100").amount == 5_000_000
    assert str(parse_budget("200gpuh", "A100")) == "200 GPU-hours"
    for wrong in ("5M", "0tokens", "-1gpuh", "1e9tokens", "1.5tokens"):
        with pytest.raises(StudyError, match="invalid; write tokens or GPU-hours"):
            parse_budget(wrong, "H100")


def over_the_grid(trained: Trained, folder: Path, **fields: object) -> Search:
    """A finished search over the tiny study's grid, or other axes, in a copy of the store that has that grid."""
    shutil.copytree(trained.store, folder / "runs")
    axes = {"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]}
    search = searching(str(trained.study), folder / "runs", block(**{"axes": axes, "searcher": "grid"} | fields))
    finish(search)
    return search


def test_a_search_over_anchors_trains_their_estimate_once_and_before_them(tmp_path: Path) -> None:
    anchor = {"finetune.anchor": {"ewc": 1, "sequences": 8}, "grid": {}, "execution": {"accelerator": "cpu"}}
    axes = block(axes={"finetune.anchor.ewc": [1, 100]}, searcher="grid")
    search = searching(str(tiny_study(tmp_path, **anchor)), tmp_path / "runs", axes)
    order = []
    while not search.finished():
        if (stage := search.next_stage()) is not None:
            order.append(stage.stage)
            finish_run(search.store.run(stage.key))
            search.ended(stage.key)
    assert order == ["pretrain", "posttrain", "fisher", "finetune", "finetune"]
    assert [search.state_of(one) for one in search.candidates] == ["done", "done"]
