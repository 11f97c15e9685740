"""What the curves of a stage measure."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from retain.launchers.stage.training.curves import Curves, Heldout
from retain.lightning_modules.stage import StageModule
from retain.results.store.curves import read_curves
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, random_sequences, small_model, train
from tests.results.runs import kinds, registered

SAVED, STEPS, STEP_S = 4000, 20, 0.01


class Restoring(Callback):
    """Resumes at a step as a checkpoint does, and makes every step take some time."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        module.step = SAVED

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        time.sleep(STEP_S)


def test_no_reading_of_the_speed_counts_the_tokens_of_an_earlier_attempt(tmp_path: Path) -> None:
    recipe = RECIPE | {"steps": SAVED + STEPS, "sequences": 8 * (SAVED + STEPS), "sequence_length": LENGTH}
    run = kinds(*registered(tmp_path), "pretrain")[0]
    module = StageModule(small_model(), recipe)
    saved = {"points": [], "logged_step": SAVED}
    curves = Curves(run, Heldout({}, {}, module, bf16=False, rank=0, world=1), None, saved)
    train(module, list(random_sequences(8 * STEPS).split(8)), curves, Restoring())
    speeds = read_curves(run.folder)["pretrain/tokens_per_second"]
    assert [tokens for tokens, _ in speeds] == [(SAVED + step) * 8 * LENGTH for step in (10, 20)]
    assert all(0 < speed < 8 * LENGTH / STEP_S for _, speed in speeds)
    assert run.state().progress.tokens_per_second == speeds[-1][1]
