"""A thousand runs are checked and shown by several processes, with the results of one."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.made_up import MadeStore, made_store
from retain.launchers.checks.verify import verify_store
from retain.launchers.planning.opened_study import open_study
from retain.results.store.runs import Store
from retain.results.tensorboard.views import link_runs, view_folder
from tests.retain import retain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="one process works here")

EVENTS_TIME = re.compile(r"(?<=tfevents)\.\d+")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStore:
    return made_store(1_000, tmp_path_factory.mktemp("many"))


@contextmanager
def one_core() -> Iterator[None]:
    """This process may use one core only, so it works alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def content(folder: Path) -> dict[str, str | int]:
    """What is in a folder and the folders below: the sizes of files, and where links lead. Files of events hold times."""
    return {
        EVENTS_TIME.sub("", str(path.relative_to(folder))): os.readlink(path)
        if path.is_symlink()
        else path.stat().st_size
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_verify_finds_the_same_in_the_same_order(made: MadeStore, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made.root, tmp_path / "runs", symlinks=True))
    done = [run for run in Store(store).runs() if run.state().state == "done"]
    for run, name in zip(
        (done[0], done[len(done) // 2], done[-1]), ("losses.json", "stage.json", "state.json"), strict=True
    ):
        (run.folder / name).write_text("{")
    found = json.loads(retain("verify", made.study, "--store", store, "--json", code=1).stdout)
    with one_core():
        checked, problems = verify_store(Store(store), None)
    assert found["runs"] == checked == 1_000
    assert found["problems"] == [vars(problem) for problem in problems]
    assert {done[0].key, done[len(done) // 2].key, done[-1].key} <= {problem.where for problem in problems}


def test_board_shows_the_same(made: MadeStore) -> None:
    shown = view_folder(made.root, "scale")
    script = "import sys; from benchmarks.scale import link_board; link_board(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, str(made.study), str(made.root)], check=True)
    by_processes = content(shown)
    shutil.rmtree(shown)
    opened = open_study(str(made.study), (), made.root)
    with one_core():
        link_runs(opened.tree, opened.store)
    assert by_processes == content(shown)
    assert len(os.listdir(shown)) > 800
