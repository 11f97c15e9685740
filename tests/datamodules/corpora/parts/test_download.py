"""`retain data --download-only` with a hub on localhost; everything after it without a network."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.datamodules.corpora.hub_server import commit_of, hub
from tests.retain import retain, retain_json
from tests.studies import documents_of, tiny_study

NAME = "owner/songs"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def online(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a hub on localhost with a data set of three files and a held-out split."""
    folder = tmp_path / "hub" / "datasets" / NAME
    folder.mkdir(parents=True)
    texts = documents_of("music", 420)
    for number in range(3):
        table = pyarrow.table({"text": texts[number * 130 : number * 130 + 130]})
        pyarrow.parquet.write_table(table, folder / f"train-{number:05}-of-00003.parquet", row_group_size=50)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[390:]}), folder / "validation.parquet")
    (folder / "test.parquet").write_bytes((folder / "validation.parquet").read_bytes())
    (folder / "README.md").write_text("# songs\n")
    with hub(tmp_path / "hub") as address:
        yield {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}


def study_of(folder: Path, **overrides: Any) -> Path:
    music = {"hf": NAME, "heldout": {"split": "validation"}} | overrides
    return tiny_study(folder / "study", **{"corpora.music": music, "execution": {"data": {"part": 4000}}})


def without_near_copies(corpus: dict[str, Any]) -> dict[str, Any]:
    """A corpus of `retain data --json` without the estimate of near copies, which parts do not have."""
    reading = {name: count for name, count in corpus["reading"].items() if name not in ("near", "sampled")}
    return corpus | {"reading": reading, "remarks": []}


@pytest.mark.slow
@pytest.mark.parametrize("in_turn", [1, 2])
def test_what_was_downloaded_is_prepared_in_parts_without_a_network_as_with_one(
    online: dict[str, str], tmp_path: Path, in_turn: int
) -> None:
    study, store = study_of(tmp_path, **({"in_turn": in_turn} if in_turn > 1 else {})), tmp_path / "runs"
    found = retain_json("data", study, "--download-only", "--store", store, more=online)["downloads"]
    assert [(one["name"], one["commit"]) for one in found] == [("music", commit_of(NAME))]
    assert found[0]["files"] == 5  # without the split that is not read
    there = retain_json("data", study, "--store", store, more=OFFLINE)
    streamed = retain_json("data", study, "--store", tmp_path / "streamed", more=online)
    assert list(map(without_near_copies, there["corpora"])) == list(map(without_near_copies, streamed["corpora"]))
    parts = [run for run in retain_json("status", "--store", store)["runs"] if run["stage"] == "prepare"]
    assert len([run for run in parts if run["axes"]["corpus"] == "music"]) == 3
    notes = [json.loads(note.read_text()) for note in (store / "prepared").glob("*.json")]
    assert commit_of(NAME) in {note.get("commit") for note in notes}
    for path in store.glob("downloads/**/*"):
        os.utime(path, (0, 0))
    os.utime(next(store.glob("downloads/*")), (0, 0))
    freed = retain_json("gc", "--store", store)["freed"]
    assert {one["kind"] for one in freed} == {"downloads", "parts"}
    assert not list(store.glob("downloads/*"))


def test_a_damaged_file_is_fetched_again_and_what_is_whole_is_not(online: dict[str, str], tmp_path: Path) -> None:
    study, store = study_of(tmp_path), tmp_path / "runs"
    command = ("data", study, "--download-only", "--store", store)
    retain(*command, more=online)
    again = retain(*command, more=online)
    assert "parquet" not in again.stderr
    place = next(store.glob("downloads/*/data"))
    next(store.glob("downloads/*/download.json")).unlink()  # as if it had been interrupted
    kept, damaged = (place / f"train-{number:05}-of-00003.parquet" for number in (0, 1))
    content, before = damaged.read_bytes(), kept.stat().st_mtime_ns
    damaged.write_bytes(content[:-1] + b"?")
    os.utime(
        damaged, (time.time() + 10,) * 2
    )  # huggingface_hub takes a file of the same second for what it has written
    said = retain(*command, more=online).stderr
    assert "owner/songs: train-00001-of-00003.parquet: " in said
    assert damaged.read_bytes() == content
    assert kept.stat().st_mtime_ns == before


def test_a_file_that_differs_from_the_hash_of_the_hub_is_refused(
    online: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.datamodules.corpora.hub_server._git_hash", lambda content: "0" * 40)
    failed = retain(
        "data", study_of(tmp_path), "--download-only", "--store", tmp_path / "runs", code=3, more=online
    ).stderr
    assert "README.md: the file differs from the hub's hash" in failed
    assert not list((tmp_path / "runs").glob("downloads/*/download.json"))
