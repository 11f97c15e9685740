"""The names of losses in TensorBoard: those of a stage by stage and split, the four of a trial in a view of trials."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from retain.launchers.planning.opened_study import open_study
from retain.results.store.loss_table import loss_at, loss_columns, trial_rows
from retain.results.store.runs import Store
from retain.results.tensorboard.trials import write_trials
from retain.results.tensorboard.views import link_runs, update_event_files
from retain.sweeps.schema.section import LOSSES
from tests.conftest import Trained
from tests.results.runs import finish_all, registered
from tests.results.tensorboard.test_views import Board, own_copy
from tests.retain import retain_here


def losses_in(folder: Path) -> dict[str, float]:
    """The losses that TensorBoard's reader finds in a run's event files, by name."""
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("losses/")]
    return {tag.removeprefix("losses/"): events.Scalars(tag)[-1].value for tag in tags}


def scalars_in(folder: Path) -> set[str]:
    return set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


def plugin_data(folder: Path, tag: str) -> Any:
    events = EventAccumulator(str(folder)).Reload()
    return plugin_data_pb2.HParamsPluginData.FromString(events.summary_metadata[f"_hparams_/{tag}"].plugin_data.content)


def metrics_of(folder: Path) -> list[str]:
    return [info.display_name for info in plugin_data(folder, "experiment").experiment.metric_infos]


def close(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[name] - expected[name]) < 1e-5 for name in expected)


def test_the_losses_of_a_stage_are_named_by_its_stage_and_by_the_split(trained: Trained) -> None:
    for run in Store(trained.store).runs():
        stage = run.spec()["stage"]
        own = {f"{stage}/{split}": loss["loss"] for split, loss in run.losses()["splits"].items()}
        found = losses_in(run.folder)
        assert close({name: loss for name, loss in found.items() if name not in LOSSES}, own)
        assert set(found) & set(LOSSES) == (set(LOSSES) if stage == "finetune" else set())
        assert set(metrics_of(run.folder)) == set(found)


def test_the_view_of_trials_has_a_run_for_each_trial_with_its_axes_and_all_its_losses(
    trained: Trained, tmp_path: Path
) -> None:
    store = Store(own_copy(trained, tmp_path))
    tree = open_study(str(trained.study), (), store.root).tree
    rows = {repr(row["axes"]): row for row in trial_rows(tree, store)}
    folder = write_trials(tree, store)
    places = sorted(folder.iterdir())
    assert len(places) == 4
    for place in places:
        values = plugin_data(place, "session_start_info").session_start_info.hparams
        axes = {name: value.number_value for name, value in values.items()}
        row = next(row for row in rows.values() if row["axes"] == axes)
        names = [*LOSSES, *loss_columns([row])]
        assert len(names) == 13
        assert close(losses_in(place), {name: float(loss_at(row, name) or 0) for name in names})
        assert metrics_of(place) == names
    assert write_trials(tree, store, ["finetune.lr=5e-4"]) != folder
    before = {path.name for path in folder.rglob("events.*")}
    assert {path.name for path in write_trials(tree, store).rglob("events.*")} == before


def test_a_filtered_view_of_trials_has_the_trials_of_the_filter_alone_where_several_share_one_training(
    tmp_path: Path,
) -> None:
    tree, store = registered(tmp_path / "runs", grid={"finetune.average": [0.5, 1]})
    finish_all(tree, store)
    for average in (0.5, 1.0):
        (place,) = write_trials(tree, store, [f"finetune.average={average:g}"]).iterdir()
        assert place.name.startswith(f"finetune.average={average} ")


def test_the_view_of_stages_declares_the_losses_of_stages_alone(trained: Trained, tmp_path: Path) -> None:
    store = Store(own_copy(trained, tmp_path))
    folder = link_runs(open_study(str(trained.study), (), store.root).tree, store)
    assert metrics_of(folder) == [
        *("pretrain/pretraining", "pretrain/posttraining", "posttrain/pretraining", "posttrain/posttraining"),
        *("finetune/pretraining", "finetune/posttraining", "finetune/finetuning"),
    ]


def test_tensorboard_shows_a_row_for_each_trial_with_the_four_losses(trained: Trained, tmp_path: Path) -> None:
    store = Store(own_copy(trained, tmp_path))
    rows = trial_rows(open_study(str(trained.study), (), store.root).tree, store)
    with Board(trained.study, "--trials", "--store", store.root) as board:
        board.runs(4)
        assert len(board.hyperparameters(4)) == 4
        question = {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN"], "startIndex": 0, "sliceSize": 9}
        columns = [{"metric": {"tag": f"losses/{name}", "group": ""}} for name in LOSSES]
        groups = board.ask("hparams/session_groups", question | {"colParams": columns})["sessionGroups"]
    shown = [
        {value["name"]["tag"].removeprefix("losses/"): value["value"] for value in group["metricValues"]}
        for group in groups
    ]
    retained = sorted(row["retained_posttraining_loss"] for row in rows)
    assert [
        abs(one - two) < 1e-5
        for one, two in zip(sorted(each["retained_posttraining_loss"] for each in shown), retained, strict=True)
    ] == [True] * 4


@pytest.mark.parametrize("whole", [False, True], ids=["of a study", "of a whole store"])
def test_a_board_rewrites_event_files_whose_losses_have_the_names_of_others(
    whole: bool, trained: Trained, tmp_path: Path
) -> None:
    store = Store(own_copy(trained, tmp_path))
    run = next(run for run in store.runs() if run.spec()["stage"] == "posttrain")
    right, curves = losses_in(run.folder), scalars_in(run.folder)
    for path in run.folder.glob("events.*"):
        path.unlink()
    earlier = EventFileWriter(str(run.folder))
    wrong = Summary(value=[Summary.Value(tag="losses/retained_posttraining_loss", simple_value=1.0)])
    earlier.add_event(Event(wall_time=1.0, step=0, summary=wrong))
    earlier.close()
    assert losses_in(run.folder) == {"retained_posttraining_loss": 1.0}
    if whole:
        update_event_files(store)
    else:
        link_runs(open_study(str(trained.study), (), store.root).tree, store)
    assert losses_in(run.folder) == right
    assert scalars_in(run.folder) == curves
    (path,) = run.folder.glob("events.*")
    update_event_files(store)
    assert list(run.folder.glob("events.*")) == [path], "nothing is written a second time"


def test_trials_without_a_study_are_refused(tmp_path: Path) -> None:
    assert "--trials" in retain_here("board", "--store", tmp_path, "--trials", code=2).stderr
