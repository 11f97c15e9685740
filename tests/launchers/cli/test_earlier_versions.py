"""A store that was made before runs had kinds and curves.jsonl is opened, and nothing in it is trained again.

tests/data/store-0.1.0.tar.gz holds a finished linear study with its search, and the tiny study, killed in its fourth stage.
"""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from retain.results.store.curves import read_curves
from retain.results.store.runs import Store
from tests.retain import retain_here, retain_json, stages_of
from tests.studies import linear_study, tiny_study

ARCHIVE = Path(__file__).parents[2] / "data" / "store-0.1.0.tar.gz"
TINY: dict[str, Any] = {
    "grid": {"pretrain.exposure": [0, 1], "finetune.lr": [0.001]},
    "execution": {"save_steps": 4, "parallel": 1},
    "posttrain.max_tokens": 20480,
}
SEARCH = {"axes": {"finetune.lr": [0.005, 0.01, 0.02]}, "searcher": "grid"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "runs"


@pytest.mark.slow
def test_an_interrupted_stage_resumes_from_its_old_checkpoint(store: Path, tmp_path: Path) -> None:
    before = {run.key: run.state() for run in stages_of(store)}
    (stopped,) = [run for run in stages_of(store) if run.checkpoint.exists()]
    study = tiny_study(tmp_path / "study", **TINY)
    trials = retain_json("run", study, "--store", store)["trials"]
    assert len(trials) == 2
    for run in stages_of(store):
        attempts = run.state().attempts
        assert run.is_done()
        if run.key == stopped.key:
            assert [attempt.cause for attempt in attempts] == ["SIGTERM", "finished"]
            assert attempts[1].tokens_at_start > 0
        elif before[run.key].state == "done":
            assert run.state() == before[run.key]
    # The curves of the first attempt were in its checkpoint.
    tokens = [tokens for tokens, _ in read_curves(stopped.folder)["posttrain/loss"]]
    assert tokens == sorted(set(tokens))
    assert tokens[0] < stopped.state().attempts[1].tokens_at_start
    assert len(list(stopped.folder.glob("events.*"))) == 1
    assert "0 problems" in retain_here("verify", "--store", store).stdout


def test_a_finished_study_and_its_search_are_read_and_nothing_is_trained(store: Path, tmp_path: Path) -> None:
    study = linear_study(tmp_path / "study", search=SEARCH)
    before = {run.key: run.state() for run in Store(store).runs()}
    assert retain_json("plan", study, "--store", store)["totals"]["to_train"] == 0
    assert len(retain_json("run", study, "--store", store)["trials"]) == 4
    (best, *_) = retain_json("search", study, "--store", store)["recommended"]
    assert best["values"] == {"finetune.lr": 0.005}
    assert {run.key: run.state() for run in stages_of(store)} == before
    assert "0 problems" in retain_here("verify", "--store", store).stdout
