"""TensorBoard: what event files contain, and what `retain board` serves."""

import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from retain.launchers.planning.opened_study import open_study
from retain.launchers.stage.ranks import free_port
from retain.results.store.runs import Store
from retain.results.tensorboard.events import study_events, study_hyperparameters
from retain.results.tensorboard.opening import free_port as next_port
from retain.results.tensorboard.opening import readable_filters
from retain.results.tensorboard.trials import write_trials
from retain.results.tensorboard.views import chosen_trials, link_runs
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.section import LOSSES
from tests.conftest import Trained
from tests.results.runs import put_state
from tests.retain import retain_here, start, train_here
from tests.studies import linear_study, tiny_tree


def test_the_curves_of_a_stage_are_over_tokens_and_end_with_its_last_token(trained: Trained) -> None:
    for run in Store(trained.store).runs():
        events = EventAccumulator(str(run.folder)).Reload()
        tags = set(events.Tags()["scalars"])
        stage, recipe = run.spec()["stage"], run.spec()["recipe"]
        assert {f"{stage}/loss", f"{stage}/learning_rate", f"{stage}/tokens_per_second"} <= tags
        loss = events.Scalars(f"{stage}/loss")
        assert [point.step for point in loss] == sorted({point.step for point in loss})
        assert loss[0].step == max(1, recipe["steps"] // 10) * recipe["batch"] * recipe["sequence_length"]
        assert loss[-1].step == run.losses()["trained_tokens"]
        assert events.Scalars(f"{stage}/learning_rate")[-1].value <= recipe["lr"]


def test_a_finetuning_has_its_settings_as_hyperparameters_and_the_four_losses_as_metrics(trained: Trained) -> None:
    leaf = next(run for run in Store(trained.store).runs() if run.spec()["stage"] == "finetune")
    events = EventAccumulator(str(leaf.folder)).Reload()
    for name in LOSSES:
        assert len(events.Scalars(f"losses/{name}")) == 1
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    recipe = leaf.spec()["recipe"]
    assert settings["finetune.lr"].number_value == recipe["lr"]
    assert {"pretrain.lr", "posttrain.lr", "pretrain.exposure"} <= set(settings)


def test_board_serves_the_runs_axes_charts_and_figures_of_a_study_on_localhost_only(
    trained: Trained, tmp_path: Path
) -> None:
    store = own_copy(trained, tmp_path)
    with Board(trained.study, "--store", store) as board:
        names = board.runs(9)
        assert "." in names  # the event file of the study
        assert any(name.startswith("finetune pretrain.exposure=1") and "finetune.lr=0.002" in name for name in names)
        assert {(run["pretrain.exposure"], run.get("finetune.lr")) for run in board.hyperparameters(8)} == {
            (0, None), (0, 5e-4), (0, 2e-3), (1, None), (1, 5e-4), (1, 2e-3),
        }  # fmt: skip
        experiment = board.ask("hparams/experiment", {"experimentName": ""})
        assert experiment["name"] == "tiny"
        assert {info["name"]: info["domainDiscrete"] for info in experiment["hparamInfos"]} == {
            "pretrain.exposure": [0, 1],
            "finetune.lr": [5e-4, 2e-3],
        }
        while "." not in (images := board.ask("images/tags")):
            time.sleep(0.2)
        assert images["."]["figures/losses"]["samples"] == 1
        layout = board.ask("custom_scalars/layout")
        charts = {group["title"]: [chart["title"] for chart in group["chart"]] for group in layout["category"]}
        assert charts["training loss"] == ["pretrain", "posttrain", "finetune"]
        assert charts["held-out loss"] == ["pretraining", "posttraining", "finetuning"]
        image = urllib.parse.urlencode({"run": ".", "tag": "figures/losses", "sample": 0})
        (shown,) = board.ask(f"images/images?{image}")
        assert (
            board.fetch(f"plugin/images/individualImage?{shown['query']}")
            == next((store / "studies/tiny").glob("losses.png")).read_bytes()
        )
        with pytest.raises(OSError, match=r"refused|unreachable|assign|timed out"):
            # Another address of this machine than that of localhost.
            socket.create_connection(("127.0.0.2", board.port), timeout=5).close()


def test_each_chart_of_the_layout_shows_the_curves_of_its_stage_only(trained: Trained, tmp_path: Path) -> None:
    store = own_copy(trained, tmp_path)
    folder = link_runs(open_study(str(trained.study), (), store).tree, Store(store))
    layout = custom_scalars(folder)
    patterns = {chart.title: chart.multiline.tag[0] for group in layout.category for chart in group.chart}
    for place in folder.iterdir():
        if place.is_dir():
            tags = EventAccumulator(str(place)).Reload().Tags()["scalars"]
            stage = place.name.split()[0]
            assert [tag for tag in tags if re.match(patterns[stage], tag)] == [f"{stage}/loss"]
            others = {"pretrain", "posttrain", "finetune"} - {stage}
            assert not any(re.match(patterns[other], tag) for other in others for tag in tags)


def test_each_filter_has_its_own_view_with_the_runs_on_the_paths_of_its_trials(
    trained: Trained, tmp_path: Path
) -> None:
    store = own_copy(trained, tmp_path)
    tree = open_study(str(trained.study), (), store).tree
    whole = link_runs(tree, Store(store))
    rate = link_runs(tree, Store(store), ["finetune.lr=5e-4"])
    both = link_runs(tree, Store(store), ["finetune.lr=0.0005", "pretrain.exposure=1.0"])
    assert [len(shown(folder)) for folder in (whole, rate, both)] == [8, 6, 3]
    assert rate.name == "finetune.lr=0.0005"
    assert not any("finetune.lr" in name for name in shown(rate)), "what all runs share is in no name"
    assert {name.split()[0] for name in shown(both)} == {"pretrain", "posttrain", "finetune"}
    assert len({whole, rate, both}) == 3


def test_views_follow_the_study_and_write_nothing_into_the_runs(trained: Trained, tmp_path: Path) -> None:
    store = own_copy(trained, tmp_path)
    before = {file: file.stat().st_mtime_ns for run in Store(store).runs() for file in run.folder.rglob("*")}
    folder = link_runs(open_study(str(trained.study), (), store).tree, Store(store))
    ours = {file.name for file in folder.rglob("events.*") if not file.is_symlink()}
    link_runs(open_study(str(trained.study), (), store).tree, Store(store))
    assert {file.name for file in folder.rglob("events.*") if not file.is_symlink()} == ours
    link_runs(open_study(str(trained.study), ["finetune.lr=5e-4"], store).tree, Store(store))
    assert len(shown(folder)) == 6
    assert len(list(folder.glob("events.*"))) == 1
    assert before == {file: file.stat().st_mtime_ns for run in Store(store).runs() for file in run.folder.rglob("*")}


def test_results_updates_a_view_but_does_not_create_one(trained: Trained, tmp_path: Path) -> None:
    store = own_copy(trained, tmp_path)
    view = store / "studies" / "tiny" / "tensorboard"
    shutil.rmtree(view)
    retain_here("results", trained.study, "--store", store)
    assert not view.exists()
    view.mkdir()
    assert str(view) in retain_here("results", trained.study, "--store", store).stdout.replace("\n", "")
    assert len(shown(view)) == 8


def test_a_damaged_view_is_repaired(trained: Trained, tmp_path: Path) -> None:
    store = own_copy(trained, tmp_path)
    tree = open_study(str(trained.study), (), store).tree
    folder = link_runs(tree, Store(store))
    intact = contents(folder)
    emptied, unlinked, linked, stale, gone, *_ = sorted(place for place in folder.iterdir() if place.is_dir())
    next(file for file in emptied.iterdir() if not file.is_symlink()).write_bytes(b"")  # as a crash leaves it
    next(file for file in unlinked.iterdir() if file.is_symlink()).unlink()
    run = next(file for file in linked.iterdir() if file.is_symlink()).resolve().parent
    shutil.rmtree(linked)
    linked.symlink_to(run)  # as it was before the run was done
    (stale / "events.out.tfevents.0000000000.123456789abc").write_bytes(b"other axes")
    (stale / "events.out.tfevents.1.gone").symlink_to(tmp_path / "gone")
    shutil.rmtree(gone)
    (folder / "run of another study").symlink_to(run)
    before = set(run.iterdir())
    link_runs(tree, Store(store))
    assert contents(folder) == intact
    assert set(run.iterdir()) == before


def test_the_folder_of_an_unfinished_run_is_linked_and_a_wrong_link_is_repaired(
    trained: Trained, tmp_path: Path
) -> None:
    store = Store(own_copy(trained, tmp_path))
    tree = open_study(str(trained.study), (), store.root).tree
    run = store.run(tree.trials[0].leaf)
    put_state(run, replace(run.state(), state="running"))
    folder = link_runs(tree, store)
    (place,) = (place for place in folder.iterdir() if place.is_symlink())
    assert place.resolve() == run.folder.resolve()
    place.unlink()
    place.symlink_to(tmp_path)
    link_runs(tree, store)
    assert place.resolve() == run.folder.resolve()


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (["posttrain.lr=1"], "the axes of tiny are pretrain.exposure, finetune.lr"),
        (["finetune.lr"], "a filter is AXIS=VALUE"),
        (["finetune.lr=3e-4"], "the values are 0.0005, 0.002"),
        (["finetune.lr=5e-4", "finetune.lr=2e-3"], "no trial has all these values"),
    ],
)
def test_the_error_for_a_filter_without_a_match_lists_axes_or_values(where: list[str], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        chosen_trials(tiny_tree(), where)


def test_filter_values_may_be_written_as_in_the_study_file() -> None:
    tree = tiny_tree(grid={"posttrain.max_tokens": [2560, 5120], "posttrain.method": ["full"], "seed": [0, 1]})
    for text in ("5120", "5.12k", "5.12e3"):
        chosen, name = chosen_trials(tree, [f"posttrain.max_tokens={text}"])
        assert ({trial.axes["posttrain.max_tokens"] for trial in chosen}, name) == ({5120}, "posttrain.max_tokens=5120")
    assert len(chosen_trials(tree, ["posttrain.method=full", "seed=1"])[0]) == 2


def test_text_and_number_axes_become_hyperparameters(tmp_path: Path) -> None:
    trials = [{"method": "mixed", "seed": 0}, {"method": "mixed+dropout", "posttrain.dropout": 0.02, "seed": 1}]
    name, content = study_events(study_hyperparameters("kinds", trials), [], [])
    (tmp_path / name).write_bytes(content)
    events = EventAccumulator(str(tmp_path)).Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    infos = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.hparam_infos
    assert {info.name: len(info.domain_discrete.values) for info in infos} == {
        "method": 2,
        "seed": 2,
        "posttrain.dropout": 1,
    }


def test_a_large_study_opens_with_a_part_that_tensorboard_ticks_and_a_small_one_whole() -> None:
    grid = {"pretrain.exposure": [0, 0.5, 1], "posttrain.lr": [1e-3, 2e-3], "finetune.lr": [1e-4, 2e-4, 4e-4, 8e-4]}
    assert readable_filters(tiny_tree(grid=grid)) == []  # 33 runs
    large = tiny_tree(grid=grid | {"seed": [0, 1, 2, 3, 4]})
    assert readable_filters(large) == ["seed=0"]
    more = tiny_tree(grid=grid | {"pretrain.exposure": [number / 12 for number in range(13)], "seed": [0, 1]})
    assert readable_filters(more) == ["seed=0", "finetune.lr=0.0001", "posttrain.lr=0.001"]
    of_nulls = tiny_tree(grid=grid | {"seed": [0, 1], "posttrain.max_tokens": [None, 640]})
    assert readable_filters(of_nulls)[0] == "posttrain.max_tokens=null"  # as `status` and the study file write it
    chosen, _ = chosen_trials(more, readable_filters(more))
    assert len({key for trial in chosen for key in trial.path}) == 39


def test_a_port_that_is_taken_is_one_sentence_and_without_one_the_next_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = retain_here("board", "--store", tmp_path, "--port", str(port), code=3).stderr
        assert refused.startswith(f"retain: --port {port}: another process has it")
        assert refused.count("\n") == 1
    with socket.socket() as other:
        first = next_port(None)
        other.bind(("127.0.0.1", first))
        other.listen()
        assert next_port(None) > first


def test_a_filter_without_a_study_is_refused(tmp_path: Path) -> None:
    assert "name a study" in retain_here("board", "--store", tmp_path, "--where", "seed=1", code=2).stderr


def own_copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the trained store that a test may write into."""
    return shutil.copytree(trained.store, tmp_path / "runs", symlinks=True)


def contents(view: Path) -> dict[str, str | list[str]]:
    """The target of each link of a view, and the tags of each of its event files."""
    files = [path for path in view.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        str(file.relative_to(view)): str(file.readlink()) if file.is_symlink() else sorted(summary_tags(file))
        for file in files
    }


def summary_tags(file: Path) -> list[str]:
    return list(EventAccumulator(str(file)).Reload().summary_metadata)


def shown(view: Path) -> set[str]:
    """The names of the runs that a view shows."""
    return {place.name for place in view.iterdir() if place.is_dir()}


def custom_scalars(view: Path) -> Any:
    events = EventAccumulator(str(view)).Reload()
    (tensor,) = (event.tensor_proto for event in events.Tensors("custom_scalars__config__"))
    return layout_pb2.Layout.FromString(tensor.string_val[0])


class Board:
    """`retain board` on a free port, stopped at the end of the block."""

    def __init__(self, *arguments: str | Path) -> None:
        self.port = free_port()
        self.process = start("board", *arguments, "--port", str(self.port))

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)

    def fetch(self, path: str, body: Any = None) -> bytes:
        request = urllib.request.Request(f"http://localhost:{self.port}/data/{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer of one of TensorBoard's plugins."""
        return json.loads(self.fetch(f"plugin/{path}", body))

    def runs(self, count: int) -> list[str]:
        """The names of the runs that TensorBoard has read, once there are `count`."""
        names: list[str] = []
        end = time.monotonic() + 60
        while time.monotonic() < end and len(names) < count:
            time.sleep(0.3)
            try:
                names = json.loads(self.fetch("runs"))
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                continue
        assert len(names) == count
        return names

    def hyperparameters(self, count: int) -> list[dict[str, Any]]:
        """The hyperparameters of the runs that TensorBoard has read, once there are `count`."""
        question = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS"], "sliceSize": 100}
        end = time.monotonic() + 30
        groups: list[Any] = []
        while time.monotonic() < end and len(groups) < count:
            groups = self.ask("hparams/session_groups", question | {"startIndex": 0, "colParams": []})["sessionGroups"]
        return [group["hparams"] for group in groups]


def test_labels_of_any_length_and_letters_are_names_of_runs(tmp_path: Path) -> None:
    labels = {label: {"finetune.lr": lr} for label, lr in (("日本語" * 30, 0.01), ("a/[16, 16]", 0.005))}
    study = linear_study(tmp_path, cases={"kind": labels}, grid={})
    train_here(study, tmp_path / "runs")
    opened = open_study(str(study), (), tmp_path / "runs")
    for make_view, count in ((link_runs, 4), (write_trials, 2)):
        folder = make_view(opened.tree, opened.store)
        shown = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload().Runs()
        assert len([name for name in shown if "/" not in name and name != "."]) == count
