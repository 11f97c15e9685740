"""`retain search` on a real local Ray: what its processes do. What is tried next is tested without one."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.planning.opened_study import open_study
from retain.launchers.search.derived_studies import open_search
from retain.launchers.search.ray.cleanup import clean_up, processes_of, ray_folder
from retain.results.report.search import search_part
from retain.results.store.loss_table import trial_rows
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StudyError
from tests.conftest import Trained
from tests.disks import enlarge, small_disk_at
from tests.launchers.listening import addresses
from tests.retain import losses, retain, retain_here, retain_json, stages_of, start, wait_until, weights
from tests.studies import linear_study, tiny_study

GRID: dict[str, Any] = {
    "axes": {"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]},
    "searcher": "grid",
    "constraints": {"immediate_posttraining_loss": {"within": 0.5}, "posttrain/general": {"within": 0.5}},
}
STAGES = 8
"""Two exposures: four points share two pretrainings and two post-trainings."""


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
    runs = stages_of(searched.store)
    kinds = [run.spec()["stage"] for run in runs]
    assert (kinds.count("pretrain"), kinds.count("posttrain"), kinds.count("finetune")) == (2, 2, 4)
    assert all(len(run.state().attempts) == 1 for run in runs)
    spent = document["spent"]
    assert spent["stages"] == STAGES
    assert spent["tokens"] == sum(run.losses()["trained_tokens"] for run in runs)
    assert spent["tokens_without_sharing"] > spent["tokens"]


def test_searched_trials_are_ordinary_ones_with_the_bits_of_retain_run(searched: Searched, trained: Trained) -> None:
    rows = retain_json("results", searched.document["points_study"], "--store", searched.store)["trials"]
    assert len(rows) == 4
    for row, point in zip(rows, searched.document["points"], strict=True):
        assert point["losses"]["posttrain/general"] == row["losses"]["posttrain"]["general"]
    assert {row["axes"]["point"] for row in rows} == {"p0", "p1", "p2", "p3"}
    ran = trial_rows(open_study(str(trained.study), (), trained.store).tree, Store(trained.store))
    place = ("pretrain.exposure", "finetune.lr")
    assert {tuple(row["axes"][name] for name in place): row["keys"] for row in rows} == {
        tuple(row["axes"][name] for name in place): row["keys"] for row in ran
    }
    assert weights(searched.store) == weights(trained.store)
    assert "0 problems" in retain_here("verify", searched.document["points_study"], "--store", searched.store).stdout


def test_status_results_and_report_of_the_study_tell_of_the_search(searched: Searched) -> None:
    status = retain_json("status", searched.study, "--store", searched.store)
    assert [(one["state"], one["launcher"], one["points"]) for one in status["searches"]] == [
        ("done", "ray", {"done": 4})
    ]
    assert [cost["stage"] for cost in status["cost"]] == ["pretrain", "posttrain", "finetune"]
    printed = retain_here("status", searched.study, "--store", searched.store).stdout
    assert "search of tiny: ray is done; points: 4 done\n" in printed  # it has no log
    (search,) = [run for run in status["runs"] if run["stage"] == "search"]
    assert search["state"] == "done"
    told = retain_here("logs", search["key"], "--store", searched.store, code=2).stderr
    assert "nothing is logged; a search on this machine prints in the terminal where it is started" in told
    told = retain_here("results", searched.study, "--store", searched.store).stdout
    assert f"retain results {searched.document['points_study']}" in told
    page = retain_here("report", searched.study, "--store", searched.store).stdout.strip()
    text = Path(page).read_text(encoding="utf-8")
    section = text[text.index('<section id="section-search">') :]
    assert "Minimised: retained_posttraining_loss. 4 points: 4 done;" in section
    bounds = "immediate_posttraining_loss within 50% of the best, posttrain/general within 50% of the best."
    assert f"Constraints: {bounds}" in section
    # With one seed there are no intervals.
    for words in ("<caption>Recommended</caption>", "Searched points: means over seeds", "finetune.lr"):
        assert words in section
    assert search_part(searched.store, "tiny-points") == search_part(searched.store, "tiny") is not None


def test_a_second_search_starts_no_ray_and_says_the_same(searched: Searched) -> None:
    again = retain_json("search", searched.study, "--store", searched.store, more={"RAY_ADDRESS": "nowhere:1"})
    assert again == searched.document
    assert all(len(run.state().attempts) == 1 for run in stages_of(searched.store))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for a driver's temporary files, by which its Ray is told from others on this machine; Ray wants it short."""
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_search_goes_on_after_its_driver_and_a_ray_worker_were_killed(
    searched: Searched, tmp_path: Path, temporary: Path
) -> None:
    store, here = tmp_path / "runs", {"TMPDIR": str(temporary)}
    driver = start("search", searched.study, "--store", store, more=here)
    wait_until(lambda: sum(run.is_done() for run in stages_of(store)) >= 2, driver)
    listening = addresses(ray_processes(temporary))
    assert listening
    assert all(address in ("127.0.0.1", "::1") for address in listening)
    driver.kill()
    driver.wait()
    wait_until(lambda: not ray_processes(temporary) and not any(run.is_running() for run in stages_of(store)))
    done = {run.key: run.state() for run in stages_of(store) if run.is_done()}
    assert 2 <= len(done) < STAGES
    again = start("search", searched.study, "--store", store, "--json", more=here)
    wait_until(lambda: any(run.state().state == "running" for run in stages_of(store)), again)
    worker = next(pid for pid, title in ray_processes(temporary).items() if "StageActor" in title)
    os.kill(worker, signal.SIGKILL)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    document = json.loads(printed)
    for name in ("recommended", "points", "importances"):
        assert document[name] == without_folder(searched.document)[name]
    assert losses(store) == losses(searched.store)
    assert all(Store(store).run(key).state() == state for key, state in done.items())
    assert ray_processes(temporary) == {}


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves_nothing_running(searched: Searched, tmp_path: Path, temporary: Path) -> None:
    store = tmp_path / "runs"
    driver = start("search", searched.study, "--store", store, more={"TMPDIR": str(temporary)})
    wait_until(lambda: any(run.state().state == "running" for run in stages_of(store)), driver)
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert "retain search" in told
    assert "resumes" in told
    assert ray_processes(temporary) == {}
    assert not any(run.is_running() for run in stages_of(store))
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
    ("override", "sentence"),
    [
        ("search.searcher=bayes", "search.searcher: unknown value (got 'bayes'); write random, grid, tpe or nsga2"),
        ("search={}", "search: there is nothing to search"),
        (
            "search={axes: {pretrain.tokens: [7680, 999M]}}",
            "pretrain.tokens: 999,000,000 tokens exceed the training split of corpus general",
        ),
        ("search={axes: {posttrain.warmup: {integers: [1, 90]}}}", "posttrain.warmup: 90 steps of warm-up"),
        (
            "cases={a: {x: {posttrain.lr: 1e-3}, y: {posttrain.lr: 2e-3}}}",
            "cases.a: a search takes one case; choose it",
        ),
        ("seed=[0, 1]", "seed: a search replaces the grid; list seeds under search.seeds"),
        ("pretrain.seed=[0, 1]", "pretrain.seed: a search replaces the grid; list seeds under search.seeds"),
        ("finetune.lr=[1e-4]", "finetune.lr: a search replaces the grid; give it one value, or search it under"),
        ("finetune.lr=1e-3", "finetune.lr: the search sets finetune.lr itself (search.axes), so this override would"),
        ("grid.posttrain.lr=[1e-4]", "posttrain.lr: a search replaces the grid; give it one value, or search it"),
    ],
)
def test_what_cannot_be_searched_is_refused_at_plan_time(override: str, sentence: str, searched: Searched) -> None:
    with pytest.raises(StudyError) as refused:
        open_search(str(searched.study), [override], searched.store, None)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_seed_beside_the_seeds_of_the_search_is_refused_as_it_would_change_nothing(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, search=GRID | {"seeds": [0, 1]})
    with pytest.raises(StudyError, match="the search trains every point with search"):
        open_search(str(study), ["seed=3"], tmp_path / "runs", None)


def test_the_grid_of_the_study_file_stands_in_no_search_s_way(searched: Searched) -> None:
    opened = open_search(str(searched.study), ["posttrain.lr=2e-3", "seed=4"], searched.store, None)
    assert list(opened.file.axes) == ["pretrain.exposure", "finetune.lr"]
    assert opened.space.block.seeds == [4]


def test_a_wrong_search_is_told_in_one_line_before_ray_is_started(searched: Searched) -> None:
    told = retain_here("search", searched.study, "--searcher", "bayes", "--store", searched.store, code=2).stderr
    assert "search.searcher: unknown value (got 'bayes'); write random, grid, tpe or nsga2" in told
    assert told.count("\n") == 1
    elsewhere = retain_here(
        "search", searched.study, "--dashboard", "--launcher", "slurm", "--store", searched.store, code=2
    )
    assert "--dashboard: only valid for the Ray that --launcher ray starts here" in elsewhere.stderr


def test_a_budget_of_hours_on_cpus_is_refused_before_anything_is_written(searched: Searched, tmp_path: Path) -> None:
    words = ["execution.accelerator=cpu", "--budget", "1gpuh", "--store", tmp_path / "runs"]
    refused = retain_here("search", searched.study, *words, code=2).stderr
    assert "--budget 1gpuh: stages train on CPUs here, for which no hours are planned; give tokens" in refused
    assert not (tmp_path / "runs").exists()


def test_an_address_without_a_ray_is_told_in_a_sentence(searched: Searched, tmp_path: Path) -> None:
    told = retain("search", searched.study, "--store", tmp_path / "runs", "--address", "127.0.0.1:1", code=3).stderr
    assert "--address 127.0.0.1:1: no Ray answers there" in told


def without_folder(document: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in document.items() if name not in ("points_study", "confirm")}


def ray_processes(temporary: Path) -> dict[int, str]:
    """What runs of a Ray whose files lie below a folder, by process number; its guard too."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "retain.launchers.search.ray.cleanup" in words and str(temporary) in words:
                found[int(place.name)] = words
    for pid in processes_of(temporary):
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


@pytest.mark.slow
def test_a_search_whose_disk_is_full_ends_with_one_sentence_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    space = {"axes": {"finetune.lr": {"uniform": [0.005, 0.02]}}, "trials": 3, "seeds": [0]}
    study = linear_study(tmp_path / "study", search=space)
    with small_disk_at(tmp_path / "disk", 64, files=60) as disk:
        said = retain("search", study, "--store", disk / "runs", code=1).stderr
        *before, last = said.splitlines()
        assert last.startswith("retain: disk full: ")
        assert "No space left on device" in last
        assert "Traceback" not in said
        assert not any("Error" in line for line in before), said
        enlarge(disk, 64)
        document = retain_json("search", study, "--store", disk / "runs")
    assert [point["state"] for point in document["points"]] == ["done"] * 3
