"""`execution.log`: what each logger has of a run that was interrupted and resumed, and what a broken one does to training."""

import contextlib
import csv
import io
import json
import os
import signal
import struct
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from retain.launchers.stage.reporting.loggers import Loggers
from retain.launchers.stage.signals import AttemptStopped
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.lightning_modules.stage import StageModule
from retain.results.store.curves import CurveWriter, Point, read_points
from retain.results.store.runs import Run
from retain.results.tensorboard.views import update_event_files
from tests.disks import fill, small_disk_at
from tests.lightning_modules.tiny_models import LENGTH, RECIPE, random_sequences, small_model, train
from tests.results.runs import context_of, finish, kinds, registered
from tests.retain import retain
from tests.studies import linear_study, tiny_tree

STEPS, INTERRUPTED, SAVED = 12, 8, 6


class Interrupting(Callback):
    """Ends an attempt as a signal does, after a step.

    whole: as a signal to all processes of a job does, so W&B's own process ends first.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if module.step != INTERRUPTED:
            return
        if self.whole:
            threads = Path("/proc/self/task").iterdir()
            children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
            own = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()]
            assert own
            for pid in own:
                os.kill(int(pid), signal.SIGTERM)
            time.sleep(0.5)
        raise AttemptStopped("SIGTERM")


def interrupted_and_resumed(tmp_path: Path, *loggers: str) -> tuple[Run, str]:
    """A run whose second attempt resumes from a checkpoint, and what it printed; the first one was two steps further."""
    tree, store = registered(tmp_path, execution={"log": list(loggers)})
    assert set(tree.stages) == set(tiny_tree().stages), "loggers are in no key"
    run = kinds(tree, store, "pretrain")[0]
    output = io.StringIO()
    with redirect_stdout(output):
        attempt(run, 0, None, Interrupting())
        saved = [(point.curve, point.value, point.tokens, point.time) for point in read_points(run.folder)]
        attempt(
            run, SAVED, {"points": [point for point in saved if point[2] <= SAVED * 8 * LENGTH], "logged_step": SAVED}
        )
    return run, output.getvalue()


def attempt(run: Run, start: int, saved: dict[str, Any] | None, *callbacks: Callback) -> None:
    recipe = RECIPE | {"steps": STEPS, "sequences": 8 * STEPS, "sequence_length": LENGTH, "warmup": 1}
    module = StageModule(small_model(), recipe)
    module.step = start
    curves = Curves(context_of(run), Heldout({}, {}, module, bf16=False, rank=0, world=1), None, saved, 1)
    try:
        train(module, list(random_sequences(8 * (STEPS - start)).split(8)), curves, *callbacks)
    except AttemptStopped:
        return
    curves.finish({"pretrain.lr": 1e-3}, {"pretrain/pretraining": 4.5})


def expected(run: Run) -> list[dict[str, float]]:
    """The rows that every logger must have: a step each, from curves.jsonl."""
    rows: dict[int, dict[str, float]] = {}
    for point in read_points(run.folder):
        rows.setdefault(point.tokens, {"tokens": point.tokens})[point.curve] = point.value
    assert len(rows) == STEPS
    return list(rows.values())


def test_csv_has_the_points_of_the_store_after_an_interruption_and_the_final_losses(tmp_path: Path) -> None:
    run, _ = interrupted_and_resumed(tmp_path, "csv")
    with (run.folder / "csv" / "metrics.csv").open() as stream:
        *rows, final = csv.DictReader(stream)
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [{name: float(row[name]) for name in wanted} for row, wanted in zip(rows, expected(run), strict=True)] == (
        expected(run)
    )
    assert float(final["losses/pretrain/pretraining"]) == 4.5
    assert not list(run.folder.glob("events.*")), "tensorboard was not asked for"


@pytest.mark.slow
def test_wandb_has_one_offline_run_whose_id_is_the_stage_key(tmp_path: Path) -> None:
    run, _ = interrupted_and_resumed(tmp_path, "wandb", "tensorboard")
    (folder,) = run.folder.glob("wandb/offline-run-*")
    (written,) = folder.glob("*.wandb")
    begun, rows, summary = read_wandb(written)
    assert (begun.run_id, begun.project, begun.display_name) == (run.key, "tiny", f"pretrain-{run.key[:8]}")
    assert [row.pop("trainer/global_step") for row in rows] == list(range(1, STEPS + 1))
    assert [{name: value for name, value in row.items() if name[0] != "_"} for row in rows] == expected(run)
    assert summary["losses/pretrain/pretraining"] == 4.5
    assert list(run.folder.glob("events.*"))
    # A signal to the whole job ends W&B's process too, which is nothing to tell.
    output = io.StringIO()
    with redirect_stdout(output):
        attempt(
            kinds(*registered(tmp_path, execution={"log": ["wandb"]}), "posttrain")[0],
            0,
            None,
            Interrupting(whole=True),
        )
    assert "failed" not in output.getvalue()


def test_trackio_has_one_run_for_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not in the test extra: it wants an older pillow than matplotlib")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run, printed = interrupted_and_resumed(tmp_path, "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("tiny") == [f"pretrain-{run.key}"], printed
    *rows, final = SQLiteStorage.get_logs("tiny", f"pretrain-{run.key}")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [{name: row[name] for name in wanted} for row, wanted in zip(rows, expected(run), strict=True)] == (
        expected(run)
    )
    assert final["losses/pretrain/pretraining"] == 4.5


def test_a_logger_that_fails_says_so_once_and_the_run_goes_on(tmp_path: Path) -> None:
    run = kinds(*registered(tmp_path, execution={"log": ["csv", "tensorboard"]}), "pretrain")[0]
    (run.folder / "csv").write_text("a file in the way")
    output = io.StringIO()
    with redirect_stdout(output):
        attempt(run, 0, None)
    assert output.getvalue().count("logger csv failed and is off for this attempt") == 1
    assert len(expected(run)) == STEPS
    assert list(run.folder.glob("events.*"))


def test_curves_and_tensorboard_have_all_points_of_a_run_whose_disk_was_full_for_a_while(tmp_path: Path) -> None:
    def report(steps: range) -> None:
        for point in (Point("pretrain/loss", step, 1.0, float(step)) for step in steps):
            with contextlib.suppress(OSError):
                curves.add(point)
            loggers.add(point)
        loggers.flush()

    with small_disk_at(tmp_path / "disk", 1) as disk, redirect_stdout(io.StringIO()) as output:
        tree, store = registered(disk / "runs")
        run = kinds(tree, store, "pretrain")[0]
        curves, loggers = CurveWriter(run.folder), Loggers(run, [], int)
        report(range(10))
        filler = fill(disk)
        report(range(10, 200))
        assert output.getvalue().count("logger tensorboard failed and is off for this attempt") == 1
        filler.unlink()
        report(range(200, 300))
        assert [point.tokens for point in read_points(run.folder)] == list(range(300))
        loggers.close()
        finish(run)
        update_event_files(store)
        (path,) = run.folder.glob("events.*")
        assert path.read_bytes().count(b"pretrain/loss") == 300


def test_a_logger_that_is_not_installed_is_one_sentence_with_the_command_before_anything_starts(tmp_path: Path) -> None:
    study, asked = linear_study(tmp_path), "execution.log=[csv, wandb]"
    blocking = tmp_path / "blocking"
    blocking.mkdir()
    (blocking / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'wandb' else find(name, package)\n"
    )
    (tmp_path / "wandb").mkdir()  # W&B's own folder is not its package
    without = {"PYTHONPATH": f"{blocking}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    for verb in ("plan", "run"):
        refused = retain(verb, study, asked, "--store", tmp_path / "runs", code=3, more=without)
        assert "linear.yaml: execution.log: wandb is not installed" in refused.stderr
        assert "run pip install 'retain-lm[wandb]', or remove it from log" in refused.stderr
    assert not (tmp_path / "runs").exists()


def read_wandb(path: Path) -> tuple[Any, list[dict[str, float]], dict[str, float]]:
    """What an offline file of W&B holds: how the run began, the rows of its history, and its summary."""
    from wandb.proto.wandb_internal_pb2 import Record

    begun, rows, summary = None, [], {}
    for content in leveldb_records(path.read_bytes()[7:], 7):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run" and begun is None:
            begun = record.run
        elif kind == "history":
            rows.append(
                {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "summary":
            summary |= {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.summary.update
            }
    return begun, rows, summary


def leveldb_records(content: bytes, offset: int) -> list[bytes]:
    """The records of a log of LevelDB, which may be in parts that do not cross a block of 32 KiB."""
    found, at, parts = [], 0, b""
    while at + 7 <= len(content):
        left = 32_768 - (at + offset) % 32_768
        if left < 7:
            at += left
            continue
        _, length, part = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            found, parts = [*found, parts], b""
    return found
