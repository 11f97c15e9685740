"""TensorBoard: what the event files hold, and what `retain board` serves."""

import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from results.losses import LOSSES
from results.store import Store
from tests.conftest import Trained
from tests.retain import start


def test_curves_are_over_tokens_seen_and_end_with_the_last_one(trained: Trained) -> None:
    for run in Store(trained.store).runs():
        events = EventAccumulator(str(run.folder)).Reload()
        tags = set(events.Tags()["scalars"])
        assert {"train/loss", "train/learning_rate", "train/tokens_per_second"} <= tags
        recipe = run.spec()["recipe"]
        loss = events.Scalars("train/loss")
        assert [point.step for point in loss] == sorted({point.step for point in loss})
        assert loss[0].step == 10 * recipe["batch"] * recipe["sequence_length"]
        assert loss[-1].step == run.losses()["trained_tokens"]
        assert events.Scalars("train/learning_rate")[-1].value <= recipe["lr"]


def test_a_leaf_has_its_settings_as_hyperparameters_and_the_four_losses_as_metrics(trained: Trained) -> None:
    leaf = next(run for run in Store(trained.store).runs() if run.spec()["stage"] == "finetune")
    events = EventAccumulator(str(leaf.folder)).Reload()
    for name in LOSSES:
        assert len(events.Scalars(f"losses/{name}")) == 1
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    recipe = leaf.spec()["recipe"]
    assert settings["finetune.lr"].number_value == recipe["lr"]
    assert {"pretrain.lr", "posttrain.lr", "pretrain.exposure"} <= set(settings)


def test_board_serves_a_study_on_localhost_with_runs_named_by_their_axes(trained: Trained, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(trained.store, store, symlinks=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    board = start("board", trained.study, "--store", store, "--port", str(port))
    try:
        names = wait_for_runs(port)
    finally:
        board.terminate()
        board.communicate(timeout=30)
    assert len(names) == 8
    assert any(name.startswith("finetune pretrain.exposure=1") and "finetune.lr=0.002" in name for name in names)


def wait_for_runs(port: int) -> list[str]:
    """The runs that TensorBoard has read, once they are eight."""
    names: list[str] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and len(names) < 8:
        time.sleep(0.3)
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/data/runs", timeout=5) as answer:
                names = json.loads(answer.read())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            continue
    return names
