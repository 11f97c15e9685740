"""Evaluations that are interrupted: real processes are killed and signalled within them, and they end in the same bits."""

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import retain
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import WorkerGroup, send_signal, train
from retain.launchers.planning.evaluations import ready_evaluations
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register_evaluations
from retain.launchers.stage.evaluate import SUMS
from retain.launchers.stage.tasks.answers import FILE
from retain.results.store.runs import LOSSES, MEASURES, Store
from tests.launchers.stage.tasks.local_tasks import QUESTIONS, TEXTS, write_tasks
from tests.studies import leave_out, tiny_study, write_corpus

TIMES = 2
"""How often each evaluation is interrupted."""
TASKS = {name: {"path": "tasks/"} for name in ("rivers", "rain", "words")}
"""One with choices, one of whole texts, one with generated text. `long_study` gives them documents for several batches."""


def long_study(folder: Path) -> Path:
    """A stage, its evaluation on a large corpus with values, and on tasks with many documents; each saves at every batch."""
    study = tiny_study(
        folder,
        **{
            "stages": ["pretrain"],
            "grid": {},
            "pretrain.tokens": 2560,
            "corpora.extra": {"files": "extra.jsonl", "heldout": 0.8, "by": "kind"},
            "evaluate": {"corpora": ["extra"], "tasks": TASKS},
            "execution": {"accelerator": "cpu", "save_minutes": 1e-6},
        },
    )
    lines = write_corpus(folder, "music", 1_500).read_text().splitlines()
    records = [json.loads(line) | {"kind": f"kind {number % 3}"} for number, line in enumerate(lines)]
    (folder / "extra.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    place = write_tasks(folder)
    questions = [one | {"question": f"{one['question']} {number}"} for number in range(200) for one in QUESTIONS]
    (place / "rivers.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in questions))
    texts = [f"{text} {number}" for number in range(400) for text in TEXTS]
    (place / "rain.jsonl").write_text("".join(f"{json.dumps({'text': one})}\n" for one in texts))
    return leave_out(study, "posttrain", "finetune")


class Interruptions:
    """Sends a signal to the process of each evaluation whenever it has saved something new, a few times."""

    def __init__(self, store: Store, number: int) -> None:
        self.store, self.number = store, number
        self.seen: dict[str, list[bytes]] = {}
        """What each evaluation had saved when it was interrupted."""

    def __call__(self, groups: Mapping[str, WorkerGroup]) -> None:
        for key, group in groups.items():
            before, seen = self.saved(key), self.seen.setdefault(key, [])
            if before and before not in seen and len(seen) < TIMES and send_signal(group.processes[0], self.number):
                group.processes[0].join(60)
                seen.append(self.saved(key))
        time.sleep(0.005)

    def saved(self, key: str) -> bytes:
        """The content of the file that an evaluation saves on the way; empty if there is none."""
        for name in (SUMS, FILE):
            with contextlib.suppress(FileNotFoundError):
                return (self.store.run(key).checkpoint / name).read_bytes()
        return b""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = long_study(tmp_path_factory.mktemp("study"))
    trained = retain.run(str(leave_out(path, "evaluate")), (), path.parent / "trained")
    assert not trained.failures
    shutil.copytree(path.parent / "trained", path.parent / "undisturbed", symlinks=True)
    long_study(path.parent)
    assert not retain.evaluate(str(path), (), path.parent / "undisturbed").failures
    return path


def results(store: Path) -> dict[str, bytes]:
    """What evaluations have measured, by the path of the file."""
    names = (name for pattern in (LOSSES, MEASURES) for name in store.glob(f"*/{pattern}"))
    return {str(name.relative_to(store)): name.read_bytes() for name in names}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2], ids=["killed", "stopped"])
def test_an_interrupted_evaluation_continues_and_ends_in_the_same_bits(
    study: Path, number: int, tmp_path: Path
) -> None:
    shutil.copytree(study.parent / "trained", tmp_path / "runs", symlinks=True)
    opened = prepare_study(str(study), (), tmp_path / "runs")
    missing = ready_evaluations(opened, blanks=False)
    register_evaluations(missing, opened.tree, opened.file, opened.facts, opened.store)
    part = replace(opened.tree, stages=opened.tree.stages | missing, trials=[])
    slots = local_slots(opened.file.study.execution, opened.file.study.stages)
    train(part, opened.store, slots, lambda states: None, Interruptions(opened.store, number))
    assert len(missing) == 4
    for key in missing:
        run = opened.store.run(key)
        starts = [attempt.tokens_at_start for attempt in run.state().attempts]
        assert len(starts) == 1 + TIMES
        assert starts == sorted(set(starts))
        assert run.is_done()
        assert not run.checkpoint.exists()
    assert results(tmp_path / "runs") == results(study.parent / "undisturbed")
