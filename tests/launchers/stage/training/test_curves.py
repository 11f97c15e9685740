"""What the curves of a stage measure."""

import io
import re
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from retain.launchers.stage.training.curves import Curves, Heldout
from retain.lightning_modules.stage import StageModule
from retain.results.store.curves import read_curves
from retain.results.store.lease import take_lease
from retain.results.store.state import Progress
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, random_sequences, small_model, train
from tests.results.runs import context_of, kinds, registered

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
    curves = Curves(context_of(run), Heldout({}, {}, module, bf16=False, rank=0, world=1), None, saved)
    train(module, list(random_sequences(8 * STEPS).split(8)), curves, Restoring())
    speeds = read_curves(run.folder)["pretrain/tokens_per_second"]
    assert [tokens for tokens, _ in speeds] == [(SAVED + step) * 8 * LENGTH for step in (10, 20)]
    assert all(0 < speed < 8 * LENGTH / STEP_S for _, speed in speeds)
    assert run.state().progress.tokens_per_second == speeds[-1][1]


def test_a_process_reports_nothing_of_a_run_that_another_has_taken_over(tmp_path: Path) -> None:
    run = kinds(*registered(tmp_path), "pretrain")[0]
    module = StageModule(small_model(), RECIPE | {"steps": 2, "sequences": 16, "sequence_length": LENGTH})
    context = replace(context_of(run), lease=take_lease(run.lease))
    (run.folder / "lease.9.json").touch()  # the other has come and gone
    train(
        module, list(random_sequences(16).split(8)), Curves(context, Heldout({}, {}, module, False, 0, 1), None, None)
    )
    assert run.state().progress == Progress()


def trained_from(
    tmp_path: Path, steps: int, start: int = 0, log_every: int | None = None
) -> tuple[list[int], list[str]]:
    """Train the last steps of a stage; returns the steps of the points of its loss, and the lines of its log."""
    recipe = RECIPE | {"steps": steps, "sequences": 8 * steps, "sequence_length": LENGTH, "warmup": 1}
    run = kinds(*registered(tmp_path / str(start)), "pretrain")[0]
    module = StageModule(small_model(), recipe)
    module.step = start
    points = [("pretrain/loss", 5.0, start * 8 * LENGTH, 1.0)] if start else []
    saved = {"points": points, "logged_step": start} if start else None
    curves = Curves(context_of(run), Heldout({}, {}, module, bf16=False, rank=0, world=1), None, saved, log_every)
    output = io.StringIO()
    with redirect_stdout(output):
        train(module, list(random_sequences(8 * (steps - start)).split(8)), curves)
    seen = [tokens // (8 * LENGTH) for tokens, _ in read_curves(run.folder)["pretrain/loss"]]
    return seen, output.getvalue().splitlines()


def test_a_stage_of_ten_steps_has_a_point_for_each_and_lines_as_people_read_in_any_trainer(tmp_path: Path) -> None:
    seen, lines = trained_from(tmp_path, 10)
    assert seen == list(range(1, 11))
    assert "steps to train: 10, " in lines[0]
    number = r"[\d.e+-]+[kM]?"
    line = rf"[\d-]+ [\d:]+ step 10/10  tokens {number}  loss {number}  lr {number}  {number} tokens/s"
    assert re.fullmatch(line, lines[-1])


def test_the_interval_of_lines_and_points_is_a_field_that_changes_no_key(tmp_path: Path) -> None:
    assert trained_from(tmp_path, 10, log_every=4)[0] == [4, 8, 10]
    fields = {"execution": {"log_every": 4, "stages": {"finetune": {"log_every": 2}}}}
    tree, store = registered(tmp_path / "runs", **fields)
    assert set(tree.stages) == set(registered(tmp_path / "others")[0].stages)
    chosen = {run.spec()["stage"]: run.execution()["log_every"] for run in store.runs()}
    assert chosen == {"pretrain": 4, "posttrain": 4, "finetune": 2}


def test_a_resumed_run_says_where_and_continues_points_and_lines(tmp_path: Path) -> None:
    seen, lines = trained_from(tmp_path, 10, start=6)
    assert seen == [6, 7, 8, 9, 10]
    assert "resumes after step 6/10, " in lines[0]
    assert "step 10/10" in lines[-1]


def test_a_long_run_of_fast_steps_has_a_line_a_second_at_most(tmp_path: Path) -> None:
    seen, lines = trained_from(tmp_path, 40, log_every=1)
    assert len(seen) == 40
    times = [line[:19] for line in lines if " step " in line]
    assert len(times) <= len(set(times)) + 2
