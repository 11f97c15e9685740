"""`retain search`: on a real local Ray for what processes do, and without one for what is tried next."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from launchers.local import Slot, train
from launchers.search.budget import Budget, parse_budget
from launchers.search.driver import Search, Work
from launchers.search.history import open_history
from launchers.search.pruning import judge, losses_at, posttraining_curve, rungs_of
from launchers.search.searchers import Outcome, propose
from launchers.search.show import summary_document
from launchers.search.strays import clean_up, ray_folder
from launchers.search.studies import SearchedStudy, open_search
from results.layout import heldout_tag
from results.losses import LOSSES
from results.search_summary import Estimate, Result, frontier_area, importances, recommended
from results.store import Store
from sweeps.errors import StudyError
from sweeps.search import Rungs
from sweeps.tree import Stage, Tree
from tests.conftest import Trained
from tests.retain import losses, retain, retain_json, start, weights
from tests.studies import tiny_study

GRID: dict[str, Any] = {
    "axes": {"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]},
    "seeds": [0, 1],
    "searcher": "grid",
    "constraints": {"immediate_posttraining_loss": {"within": 0.5}},
}
THEORY = ("pretrain.lr=0.02", "posttrain.lr=0.02", "finetune.lr=0.02")


@dataclass(frozen=True)
class Searched:
    """The tiny study, searched by `retain search`: its file, its store, and what the command printed."""

    study: Path
    store: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Searched once for all tests: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("searched")
    study = tiny_study(folder / "study", search=GRID)
    return Searched(study, folder / "runs", retain_json("search", study, "--store", folder / "runs"))


def test_a_search_ends_with_every_point_tried_and_shared_prefixes_trained_once(searched: Searched) -> None:
    document = searched.document
    assert [point["state"] for point in document["points"]] == ["done"] * 4
    runs = Store(searched.store).runs()
    kinds = [run.spec()["stage"] for run in runs]
    # Two exposures and two seeds: the four points share their pretrainings and post-trainings.
    assert (kinds.count("pretrain"), kinds.count("posttrain"), kinds.count("finetune")) == (4, 4, 8)
    assert all(len(run.state().attempts) == 1 for run in runs)
    spent = document["spent"]
    assert spent["stages"] == 16
    assert spent["tokens"] == sum(run.losses()["trained_tokens"] for run in runs)
    assert spent["tokens_without_sharing"] > spent["tokens"]


def test_searched_trials_are_ordinary_ones_with_the_bits_of_retain_run(searched: Searched, trained: Trained) -> None:
    rows = retain_json("results", searched.document["points_study"], "--store", searched.store)["trials"]
    assert len(rows) == 8
    assert {row["axes"]["point"] for row in rows} == {"p0", "p1", "p2", "p3"}
    by_seed = [row for row in rows if row["axes"]["seed"] == 0]
    ran = retain_json("results", trained.study, "--store", trained.store)["trials"]
    place = ("pretrain.exposure", "finetune.lr")
    assert {tuple(row["axes"][name] for name in place): row["keys"] for row in by_seed} == {
        tuple(row["axes"][name] for name in place): row["keys"] for row in ran
    }
    ours = weights(searched.store)
    assert all(ours[name] == bits for name, bits in weights(trained.store).items())
    assert "0 problems" in retain("verify", searched.document["points_study"], "--store", searched.store).stdout


def test_the_recommended_recipe_is_the_best_mean_over_seeds_with_its_interval(searched: Searched) -> None:
    (best,) = searched.document["recommended"]
    rows = retain_json("results", searched.document["points_study"], "--store", searched.store)["trials"]
    name = "retained_posttraining_loss"
    means: dict[str, list[float]] = {}
    for row in rows:
        means.setdefault(row["axes"]["point"], []).append(row[name])
    assert best["losses"][name]["mean"] == pytest.approx(min(sum(pair) / 2 for pair in means.values()))
    assert best["losses"][name]["low"] < best["losses"][name]["mean"] < best["losses"][name]["high"]
    assert best["losses"][name]["seeds"] == 2


def test_results_and_report_of_the_study_tell_of_the_search(searched: Searched, tmp_path: Path) -> None:
    told = retain("results", searched.study, "--store", searched.store).stdout
    assert f"retain results {searched.document['points_study']}" in told
    for study in (searched.study, searched.document["points_study"]):
        page = retain("report", study, "--store", searched.store).stdout.strip()
        text = Path(page).read_text(encoding="utf-8")
        assert '<section id="section-search">' in text
        assert "Minimised: retained_posttraining_loss. 4 points: 4 done;" in text
        section = text[text.index('<section id="section-search">') :]
        for words in ("Recommended; 95% intervals over seeds", "Searched points: means over seeds", "finetune.lr"):
            assert words in section


def test_the_confirmation_is_a_study_of_fresh_seeds_that_plan_accepts(searched: Searched) -> None:
    plan = retain_json("plan", searched.document["confirm"], "--store", searched.store)
    axes = [stage["axes"] for stage in plan["stages"] if stage["stage"] == "finetune"]
    assert {one["seed"] for one in axes} == {2, 3, 4}
    assert {one["finetune.lr"] for one in axes} == {5e-4, 2e-3}  # the grid's, so that frontiers are compared
    assert plan["totals"]["to_train"] == plan["totals"]["stages"]


def test_a_second_search_starts_no_ray_and_says_the_same(searched: Searched) -> None:
    begin = time.monotonic()
    again = retain_json("search", searched.study, "--store", searched.store, more={"RAY_ADDRESS": "nowhere:1"})
    assert again == searched.document
    assert time.monotonic() - begin < 60
    assert all(len(run.state().attempts) == 1 for run in Store(searched.store).runs())


@pytest.mark.slow
def test_a_search_goes_on_after_its_driver_and_a_ray_worker_were_killed(searched: Searched, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    driver = start("search", searched.study, "--store", store)
    wait_until(lambda: sum(run.is_done() for run in Store(store).runs()) >= 3, driver)
    listening = addresses(ray_processes())
    assert listening
    assert all(address in ("127.0.0.1", "::1") for address in listening)
    driver.kill()
    driver.wait()
    wait_until(lambda: not ray_processes() and not any(run.is_running() for run in Store(store).runs()))
    done = {run.key: run.state() for run in Store(store).runs() if run.is_done()}
    assert 3 <= len(done) < 16
    again = start("search", searched.study, "--store", store, "--json")
    wait_until(lambda: any(run.state().state == "running" for run in Store(store).runs()), again)
    worker = next(pid for pid, title in ray_processes().items() if "StageActor" in title)
    os.kill(worker, signal.SIGKILL)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    document = json.loads(printed)
    for name in ("recommended", "points", "importances"):
        assert document[name] == without_folder(searched.document)[name]
    assert losses(store) == losses(searched.store)
    assert all(Store(store).run(key).state() == state for key, state in done.items())
    assert ray_processes() == {}


def test_ctrl_c_saves_and_leaves_nothing_running(searched: Searched, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    driver = start("search", searched.study, "--store", store)
    wait_until(lambda: any(run.state().state == "running" for run in Store(store).runs()), driver)
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "retain search" in told
    assert "goes on from there" in told
    assert ray_processes() == {}
    assert not any(run.is_running() for run in Store(store).runs())
    assert not list((store / "studies" / "tiny").glob("tune*"))


def test_a_guard_ends_what_a_dead_driver_left(tmp_path: Path) -> None:
    with ray_folder() as folder:
        (folder / "log").touch()
        with (folder / "log").open() as log:
            # A Ray worker is known by the name that it gives itself.
            stray = subprocess.Popen(["ray::test", "60"], executable=shutil.which("sleep"), stdin=log)
            other = subprocess.Popen(["sleep", "60"], stdin=log)
            clean_up(folder)
    assert stray.wait(timeout=10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--searcher", "bayes"], "search.searcher: Input should be 'random', 'grid', 'tpe' or 'nsga2'"),
        (["--budget", "5"], "--budget 5: not understood; write tokens or GPU-hours"),
        (["search={}"], "search: there is nothing to search"),
        (
            ["search={axes: {pretrain.tokens: [7680, 999M]}}"],
            "pretrain.tokens: 999,000,000 tokens asked of corpus general",
        ),
        (["search={axes: {posttrain.warmup: {integers: [1, 90]}}}"], "posttrain.warmup: 90 steps of warm-up"),
        (
            ["cases={a: {x: {posttrain.lr: 1e-3}, y: {posttrain.lr: 2e-3}}}"],
            "cases.a: a search is of one case; choose it",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_ray_is_started(
    arguments: list[str], sentence: str, searched: Searched, tmp_path: Path
) -> None:
    told = retain("search", searched.study, *arguments, "--store", searched.store, code=2).stderr
    assert sentence in told
    assert told.count("\n") == 1


def test_an_address_without_a_ray_is_told_in_a_sentence(searched: Searched, tmp_path: Path) -> None:
    told = retain("search", searched.study, "--store", tmp_path / "runs", "--address", "127.0.0.1:1", code=3).stderr
    assert "--address 127.0.0.1:1: no Ray answers there" in told


def test_a_search_finds_the_planted_optimum_of_the_theory(tmp_path: Path) -> None:
    block = "search={axes: {pretrain.exposure: {uniform: [0, 0.95]}}, trials: 6, searcher: tpe}"
    search = searching("theory", tmp_path, block, *THEORY)
    finish(search, search)
    (best,) = summary_document(search, search.searched)["recommended"]
    # α* of the study: above it nothing of D_post is forgotten.
    assert best["values"]["pretrain.exposure"] > 0.758
    exposures = [one.point.values["pretrain.exposure"] for one in search.candidates]
    assert len(set(exposures)) == 6
    assert all(float(f"{value:.3g}") == value for value in exposures)


def test_a_budget_is_kept_and_spent_on_what_is_cheap(tmp_path: Path) -> None:
    block = (
        "search={axes: {pretrain.exposure: {uniform: [0, 0.95]}, finetune.time: {uniform: [1, 4]}}, trials: 20, "
        "searcher: random, per_pretraining: 3, per_posttraining: 3}"
    )
    search = searching("theory", tmp_path, block, *THEORY, budget=Budget(13_000, "tokens", "H100"))
    finish(search, search)
    spent = search.spent()
    assert spent.tokens <= 13_000
    assert search.exhausted == "the budget of 13k tokens allows no further point"
    exposures = [one.point.values["pretrain.exposure"] for one in search.candidates]
    # A pretraining takes some 5,000 steps, a fine-tuning 200 at most: two pretrainings, and the rest below them.
    assert len(set(exposures)) == 2
    assert len(exposures) > 6
    # Started again with more, it goes on; what is there costs nothing.
    history, note = open_history(search.history.path, search.searched.identity())
    assert note is None
    more = Search(search.searched, history, None, 1)
    assert [one.point.values for one in more.candidates] == [one.point.values for one in search.candidates]
    assert more.spent() == spent


def test_stages_that_the_store_has_already_cost_a_search_nothing(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "runs")
    block = f"search={json.dumps(GRID | {'seeds': [0]})}"
    search = searching(str(trained.study), tmp_path / "runs", block)
    finish(search, search)
    assert search.spent().tokens == search.spent().stages == 0
    assert len(search.results()) == 4


def test_a_failed_point_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    block = "search={axes: {pretrain.lr: [0.02, 3]}, searcher: grid}"
    search = searching("theory", tmp_path, block)
    finish(search, search)
    document = summary_document(search, search.searched)
    assert [point["state"] for point in document["points"]] == ["done", "failed"]
    assert "diverged" in document["points"][1]["reason"]
    assert document["recommended"][0]["point"] == "p0"


def test_a_changed_study_begins_a_new_history_and_keeps_the_old_one(tmp_path: Path) -> None:
    block = "search={axes: {pretrain.exposure: [0.9]}, searcher: grid}"
    search = searching("theory", tmp_path, block, *THEORY)
    finish(search, search)
    changed = open_search("theory", [block, "pretrain.lr=0.04"], tmp_path, lambda *_: None)
    history, note = open_history(search.history.path, changed.identity())
    assert history.points == []
    assert note is not None
    assert "the study has changed" in note
    assert len(list(search.history.path.parent.glob("search.*.json"))) == 1


@pytest.mark.parametrize("searcher", ["random", "grid", "tpe", "nsga2"])
@pytest.mark.parametrize(
    "objective", ["retained_posttraining_loss", {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}]
)
def test_a_searcher_is_a_function_of_what_was_tried(searcher: str, objective: Any, searched: Searched) -> None:
    block = GRID | {"searcher": searcher, "objective": objective, "axes": AXES}
    space = open_search(str(searched.study), [f"search={json.dumps(block)}"], searched.store, None).search
    outcomes: list[Outcome] = []
    for number in range(14):
        fixed = {"pretrain.exposure": 0.5} if searcher != "grid" and number % 3 == 2 else {}
        point = propose(space, outcomes, fixed)
        assert point is not None
        assert propose(space, list(outcomes), fixed) == point
        assert point not in [outcome.values for outcome in outcomes]
        assert set(point) == set(AXES)
        assert all(axis.holds(point[axis.path]) for axis in space.axes)
        assert fixed.items() <= point.items()
        scores = (point["pretrain.exposure"], 1 - point["pretrain.exposure"])[: 2 if isinstance(objective, dict) else 1]
        state: Any = ("done", "done", "open", "failed", "pruned")[number % 5]
        outcomes.append(Outcome(point, state, scores if state == "done" else (), (-0.1,)))


def test_a_space_of_choices_ends(searched: Searched) -> None:
    for searcher in ("random", "tpe"):
        block = GRID | {"searcher": searcher}
        space = open_search(str(searched.study), [f"search={json.dumps(block)}"], searched.store, None).search
        outcomes: list[Outcome] = []
        while (point := propose(space, outcomes, {})) is not None:
            outcomes.append(Outcome(point, "done", (1.0,), (0.0,)))
        assert len(outcomes) == 4


def test_rungs_are_tokens_and_the_worse_of_siblings_is_given_up() -> None:
    stage = Stage("k", "posttrain", "p", "{}", 1000, {})
    assert rungs_of(stage, Rungs()) == [250, 500]
    assert losses_at([250, 500], [(240, 3.0), (480, 2.5), (1000, 2.0)]) == {"250": 3.0, "500": 2.5}
    reached = {"a": {"250": 3.0, "500": 2.0}, "b": {"250": 3.5}, "c": {"250": 2.9}}
    assert judge("a", ["b", "c"], reached, Rungs()) is None  # the first at its rung
    assert judge("c", ["a", "b"], reached, Rungs()) is None
    assert "held-out loss 3.5000 after 250 tokens" in (judge("b", ["a", "c"], reached, Rungs()) or "")
    assert judge("b", [], reached, Rungs()) is None
    assert judge("d", ["a"], reached, Rungs()) is None


def test_a_pruned_posttraining_takes_its_point_along_and_stays_pruned(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study")
    block = (
        "search={axes: {posttrain.lr: [1e-3, 1e-6], finetune.lr: [5e-4, 2e-3]}, searcher: grid, "
        "prune: {first: 0.25}, trials: 4}"
    )
    search = searching(str(study), tmp_path / "runs", block)
    while (stage := search.next_stage()) is not None:
        if stage.stage == "posttrain" and search.history.rungs:
            break
        train_one(search, stage)
    assert stage is not None
    (first,) = search.history.rungs
    assert set(search.history.rungs[first]) == {"1280", "2560"}
    # The second post-training, at a rate that learns nothing, reaches its first rung.
    run = search.store.run(stage.key)
    assert run.spec()["execution"]["heldout_every"] == 5
    with contextlib.closing(SummaryWriter(str(run.folder))) as writer:
        writer.add_scalar(heldout_tag("posttraining"), 9.0, 1280)
    assert posttraining_curve(run) == [(1280, 9.0)]
    search.watch()
    assert search.given_up(stage.key)
    search.ended(stage.key)
    finish(search, search)
    states = [point["state"] for point in summary_document(search, search.searched)["points"]]
    assert states == ["done", "done", "pruned", "pruned"]
    history, _ = open_history(search.history.path, search.searched.identity())
    again = Search(search.searched, history, None, 1)
    assert again.next_stage() is None
    assert again.finished()


def test_budgets_are_tokens_or_hours() -> None:
    assert parse_budget("5Mtokens", "H100").amount == 5_000_000
    assert str(parse_budget("200gpuh", "A100")) == "200 GPU-hours"
    for wrong in ("5M", "0tokens", "-1gpuh", "1e9tokens", "1.5tokens"):
        with pytest.raises(StudyError, match="not understood"):
            parse_budget(wrong, "H100")


def test_importance_finds_the_axis_that_matters_and_needs_enough_points(searched: Searched) -> None:
    block = GRID | {"axes": AXES}
    space = open_search(str(searched.study), [f"search={json.dumps(block)}"], searched.store, None).search
    draw = random.Random(0)
    results = []
    for number in range(30):
        values = {axis.path: axis.at(draw.random()) for axis in space.axes}
        loss = (values["pretrain.exposure"] - 0.7) ** 2 + 1
        estimates = {name: Estimate(loss, None, None, 1) for name in LOSSES}
        results.append(Result(f"p{number}", values, estimates, (loss,)))
    first, *others = importances(space, results)
    assert first.axis == "pretrain.exposure"
    assert first.low <= first.mean <= first.high
    assert first.low > max(other.mean for other in others)
    assert sum(one.mean for one in (first, *others)) == pytest.approx(1)
    assert importances(space, results) == [first, *others]
    assert importances(space, results[:5]) == []
    assert abs(recommended(space, results)[0].values["pretrain.exposure"] - 0.7) < 0.1


def test_constraints_and_frontiers_decide_what_is_recommended(searched: Searched) -> None:
    plane = {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}
    losses = [(1.0, 3.0, 2.0), (1.005, 2.0, 3.0), (1.5, 1.0, 1.0), (1.0, 3.5, 3.5)]

    def points(block: dict[str, Any]) -> tuple[Any, list[Result]]:
        text = f"search={json.dumps(GRID | {'constraints': {'immediate_posttraining_loss': {'within': 0.01}}} | block)}"
        space = open_search(str(searched.study), [text], searched.store, None).search
        found = []
        for number, (immediate, tuned, retained) in enumerate(losses):
            values = dict(zip(LOSSES, (immediate, retained, tuned, 1.0), strict=True))
            estimates = {name: Estimate(value, None, None, 1) for name, value in values.items()}
            found.append(Result(f"p{number}", {}, estimates, space.block.objective.scores(values)))
        return space, found

    assert [one.label for one in recommended(*points({}))] == ["p0"]
    assert [one.label for one in recommended(*points({"constraints": {}}))] == ["p2"]
    assert [one.label for one in recommended(*points({"objective": plane}))] == ["p1", "p0"]
    assert recommended(*points({"constraints": {"finetuning_loss": {"at_most": 0.5}}})) == []
    space, found = points({"objective": plane})
    # Up to (3.5, 3.5), the worst seen.
    assert frontier_area(space, found) == pytest.approx(2.5 * 2.5)
    assert frontier_area(*points({})) is None


AXES = {
    "pretrain.exposure": {"uniform": [0, 1]},
    "posttrain.warmup": {"integers": [0, 5]},
    "finetune.betas": [[0.9, 0.95], [0.9, 0.99]],
}


def searching(study: str, store: Path, *overrides: str, budget: Budget | None = None) -> Search:
    """A search at its beginning, its data prepared."""
    opened: SearchedStudy = open_search(study, overrides, store, lambda *_: None)
    opened.folder.mkdir(parents=True, exist_ok=True)
    history, _ = open_history(opened.folder / "search.json", opened.identity())
    return Search(opened, history, budget, parallel=1)


def finish(work: Work, search: Search) -> None:
    """Train what a search hands out, one stage after the other, in processes of this one: no Ray is needed for that."""
    while not work.finished():
        stage = work.next_stage()
        if stage is not None:
            train_one(search, stage)


def train_one(search: Search, stage: Stage) -> None:
    alone = Stage(stage.key, stage.stage, None, "", stage.tokens, {})
    train(Tree("", {stage.key: alone}, [], False), search.store, [Slot({stage.stage: 1})], lambda _: None)
    search.ended(stage.key)


def without_folder(document: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in document.items() if name not in ("points_study", "confirm")}


def wait_until(true: Any, process: "subprocess.Popen[str] | None" = None, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


def ray_processes() -> dict[int, str]:
    """What runs of Ray on this machine, by process number; its guards too."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if re.search(r"^ray::|site-packages/ray/|launchers\.search\.strays", words):
                found[int(place.name)] = words
    return found


def addresses(processes: dict[int, str]) -> set[str]:
    """The addresses on which these processes listen."""
    return set(_listening(processes))


def _listening(processes: dict[int, str]) -> Iterator[str]:
    sockets = set()
    for pid in processes:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address = fields[1].split(":")[0]
                local = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
                yield "127.0.0.1" if address in local else address
