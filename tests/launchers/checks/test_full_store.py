"""A store that may only be read, or whose disk is full: verbs that only read work, and gc frees the disk."""

import contextlib
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retain.results.store.curves import CurveWriter, Point
from retain.results.store.runs import Store
from retain.results.tensorboard.run_events import derive_events
from retain.results.tensorboard.views import update_event_files
from retain.sweeps.base.processes.names import process_name
from tests.conftest import Trained
from tests.disks import enlarge, fill, read_only_at, small_disk_at
from tests.results.runs import finish, finish_all, kinds, problems, registered, write_model
from tests.retain import pid_of_dead_process, retain_here, retain_json
from tests.studies import documents_of, tiny_study


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with small_disk_at(tmp_path / "small", 1) as disk:
        yield disk


@pytest.fixture(params=["full", "read-only"])
def closed(request: pytest.FixtureRequest, trained: Trained, tmp_path: Path) -> Iterator[Path]:
    """A copy of the trained store into which nothing can be written."""
    if request.param == "read-only":
        with read_only_at(tmp_path / "disk", trained.store) as store:
            yield store
    else:
        with small_disk_at(tmp_path / "disk", 8) as disk:
            store = Path(shutil.copytree(trained.store, disk / "runs", symlinks=True))
            fill(disk)
            yield store


def test_readers_work_on_a_store_that_cannot_be_written(closed: Path, trained: Trained, tmp_path: Path) -> None:
    study, key = trained.study, Store(trained.store).runs()[0].key
    before = {path: path.stat().st_mtime_ns for path in closed.rglob("*") if path.is_file()}
    table = retain_here("results", study, "--store", closed).stdout
    assert table
    assert table in trained.output.stdout
    for verb in (
        ["plan", study],
        ["status", study],
        ["status"],
        ["logs", key],
        ["why", study, key],
        ["verify"],
        ["gc"],
    ):
        retain_here(*verb, "--store", closed)
    retain_here("results", study, "--csv", tmp_path / "rows.csv", "--store", closed)
    retain_here("export", key, "--to", tmp_path / "exported", "--store", closed)
    assert before == {path: path.stat().st_mtime_ns for path in closed.rglob("*") if path.is_file()}


def test_data_that_does_not_fit_leaves_no_half_of_it_and_is_prepared_once_there_is_room(tmp_path: Path) -> None:
    music = {"files": "music.jsonl.gz", "heldout": 0.1}  # compressed, so that nobody knows before how much there is
    study = tiny_study(tmp_path / "study", **{"corpora.music": music})
    with gzip.open(tmp_path / "study" / "music.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents_of("music", 30_000))
    with small_disk_at(tmp_path / "disk", 2) as disk:
        store = disk / "runs"
        said = retain_here("data", study, "--store", store, code=3).stderr
        assert "cannot be written (No space left on device); free space" in said
        assert list((store / "building").iterdir()) == []
        abandoned = store / "building" / f"{process_name().partition('.')[0]}.{pid_of_dead_process()}.1-00000000"
        abandoned.mkdir()
        with (abandoned / "train.bin").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(bytes(4096))
        assert (
            "cannot be written (No space left on device)" in retain_here("data", study, "--store", store, code=3).stderr
        )
        enlarge(disk, 8)
        retain_here("data", study, "--store", store)
        assert list((store / "building").iterdir()) == []


def test_overlap_prints_what_a_full_disk_has_no_room_to_keep(trained: Trained, tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "disk", 8) as disk:
        store = shutil.copytree(trained.store, disk / "runs", symlinks=True)
        fill(disk)
        done = retain_here("overlap", trained.study, "--store", store)
    assert "music" in done.stdout
    assert (
        done.stderr.count("cannot be written (No space left on device), so this pair is measured again next time") == 3
    )


def test_gc_works_on_a_full_disk(disk: Path) -> None:
    tree, store = registered(disk / "runs")
    unfinished, done = sorted(kinds(tree, store, "pretrain"), key=lambda run: run.key)
    finish(done)
    checkpoint = done.checkpoint / "step-000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank-00000.safetensors").write_bytes(bytes(200_000))
    write_model(unfinished.folder / "model.partial")
    fill(disk)
    assert shutil.disk_usage(disk).free == 0
    document = retain_json("gc", "--store", store.root)
    # What a lease must be taken for comes after what needs no room.
    assert [row["path"] for row in document["freed"]] == [
        str(done.checkpoint),
        str(unfinished.folder / "model.partial"),
    ]


def test_gc_says_what_it_could_not_remove_from_a_full_disk(disk: Path) -> None:
    tree, store = registered(disk / "runs")
    run = kinds(tree, store, "pretrain")[0]
    left = write_model(run.folder / "model.partial")
    filler = fill(disk)
    (kept,) = retain_json("gc", "--store", store.root, code=3)["kept"]
    assert kept["path"] == str(left)
    assert "No space left" in kept["reason"]
    filler.unlink()
    assert retain_json("gc", "--store", store.root)["kept"] == []
    assert not left.exists()


def test_gc_frees_weights_on_a_full_disk_that_has_no_other_waste(disk: Path) -> None:
    tree, store = registered(disk / "runs")
    finish_all(tree, store)
    for run in store.runs():
        CurveWriter(run.folder, [Point("curve", step, 1.0, float(step)) for step in range(300)])
        derive_events(store, run)
    filler = fill(disk)
    assert len(retain_json("gc", "--weights", "--store", store.root)["freed"]) == 4
    assert (len(store.runs()), problems(store)) == (8, {})
    filler.unlink()
    update_event_files(store)
    assert all(any(run.folder.glob("events.*")) for run in store.runs())
