"""Saved answers of a task: which of them the next attempt takes over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.tasks.answers import Answers
from retain.results.store.runs import Run, Store
from retain.sweeps.base.files import write_json
from tests.results.runs import registered

REQUESTS = ("one", "two", "three")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in which an attempt has saved the answers to two batches, and was killed in the third."""
    tree, store = registered(tmp_path / "runs", execution={"accelerator": "cpu", "threads": 1, "save_minutes": 1e-9})
    run = store.run(next(iter(tree.stages)))
    run.begin(1)
    assert asked(run) == list(REQUESTS)
    assert len(json.loads((run.checkpoint / "answers.json").read_text())["batches"]) == 2
    return run


def asked(run: Run, requests: tuple[str, ...] = REQUESTS) -> list[str]:
    """Go through the batches of a task; returns the requests that were computed."""
    answers = Answers(AttemptContext(Store(run.folder.parent), run, Ranks(), None, StopRequest()))
    computed: list[str] = []

    def compute(request: str) -> list[Any]:
        computed.append(request)
        return [[-0.1 * len(request), True], float("nan"), f"{request}\ud800"]

    for request in requests:
        found = answers.of([request], 7, lambda request=request: compute(request))  # type: ignore[misc]
        assert (found[0], found[2]) == ([-0.1 * len(request), True], f"{request}\ud800")
    return computed


def test_saved_answers_are_taken_over_exactly(run: Run) -> None:
    assert asked(run) == ["three"]


def test_answers_to_other_requests_are_not_taken_over(run: Run) -> None:
    assert asked(run, ("one", "2", "three")) == ["2", "three"]
    assert asked(run, ("two", "one", "three")) == ["two", "one", "three"]


@pytest.mark.parametrize(
    ("change", "computed", "said"),
    [
        (lambda saved: saved["batches"][1].update(answers="[]"), ["two", "three"], ""),
        (lambda saved: saved["batches"][1].pop("digest"), list(REQUESTS), "batches[1] lacks the field digest"),
        (
            lambda saved: saved.update(arithmetic="bf16 on GPUs"),
            list(REQUESTS),
            "not computed in fp32 on CPUs with 1 thread",
        ),
    ],
    ids=["changed", "damaged", "of another machine"],
)
def test_answers_that_are_damaged_or_were_computed_otherwise_are_computed_again(
    change: Change, computed: list[str], said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = json.loads((run.checkpoint / "answers.json").read_text())
    change(saved)
    write_json(run.checkpoint / "answers.json", saved)
    assert asked(run) == computed
    assert said in capsys.readouterr().out
