"""Stop signals in held-out evaluations: real processes stop within them, and end in the bits of undisturbed runs."""

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.checks.drill import curve_points
from retain.launchers.local.launcher import WorkerGroup, send_signal
from retain.results.store.curves import read_curves
from retain.results.store.runs import Run
from tests.retain import losses, stages_of, train_here, weights
from tests.studies import leave_out, tiny_study, write_corpus

EVALUATIONS = 4
"""The long ones of the stage: two of early stopping, one of the curves, and that of the final weights."""
SECTION: dict[str, Any] = {
    "corpus": "music",
    "tokens": 2048,
    "lr": 1e-3,
    "warmup": 2,
    "batch": 8,
    "method": "lora",
    "lora": {"rank": 2},
    "early_stopping": {"every": 4, "patience": 3},
}


def long_study(folder: Path, execution: Mapping[str, Any]) -> Path:
    """Eight steps of adapters, with evaluations of a second after the fourth and the eighth."""
    study = tiny_study(
        folder,
        **{
            "stages": ["pretrain", "posttrain"],
            "pretrain.tokens": 2560,
            "corpora.general.heldout": 0.8,
            "corpora.music.heldout": 0.8,
            "posttrain": SECTION,
            "grid": {"pretrain.exposure": [0]},
            "execution": {"heldout_every": 8, "log_every": 3, "save_minutes": 60} | dict(execution),
        },
    )
    for name in ("general", "music"):
        write_corpus(folder, name, 1_200)
    return leave_out(study, "finetune")


class StopEvaluations:
    """Sends a signal to the last rank of a run in each of its evaluations, once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stopped: list[int] = []
        """For each signal, how many evaluations were in the curves before it."""
        self.seen: int | None = None
        """How many were there in the look before, if that was within an evaluation."""

    def made(self) -> int:
        """The evaluations in the curves."""
        return sum(len(points) for name, points in read_curves(self.run.folder).items() if name.startswith("heldout/"))

    def __call__(self, groups: Mapping[str, WorkerGroup]) -> None:
        time.sleep(0.05)
        made, state = self.made(), self.run.state()
        within = (state.state, state.progress.phase) == ("running", "evaluating")
        if within and self.seen == made and made not in self.stopped:
            group = groups[self.run.key]
            assert send_signal(group.processes[-1], signal.SIGUSR2)
            for process in group.processes:
                process.join(60)
            assert self.made() == made
            self.stopped.append(made)
        self.seen = made if within else None


@pytest.mark.parametrize(
    "execution",
    [
        pytest.param({}, id="one process"),
        pytest.param({"devices": 2}, id="two ranks", marks=pytest.mark.slow),
        pytest.param({"devices": 2, "strategy": "fsdp"}, id="two ranks with FSDP", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_an_evaluation_and_the_next_attempt_makes_it_once(
    execution: Mapping[str, Any], tmp_path: Path
) -> None:
    study = long_study(tmp_path / "study", execution)
    train_here(study, tmp_path / "undisturbed")
    (undisturbed,) = (run for run in stages_of(tmp_path / "undisturbed") if run.spec()["stage"] == "posttrain")
    stopper = StopEvaluations(Run(tmp_path / "runs" / undisturbed.key))
    train_here(study, tmp_path / "runs", disturb=stopper)
    assert stopper.stopped == list(range(EVALUATIONS))
    assert [one.tokens for one in stopper.run.state().attempts] == [1024, *[2048] * EVALUATIONS]
    assert weights(tmp_path / "runs") == weights(tmp_path / "undisturbed")
    assert losses(tmp_path / "runs") == losses(tmp_path / "undisturbed")
    assert curve_points(stopper.run) == curve_points(undisturbed)
