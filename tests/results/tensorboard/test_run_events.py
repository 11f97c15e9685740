"""What a TensorBoard that is watching shows of a run that is resumed."""

import time
from pathlib import Path

from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from retain.results.store.curves import CurveWriter, Point
from retain.results.tensorboard.run_events import RunEvents, run_results
from retain.results.tensorboard.views import update_event_files
from tests.disks import fill, small_disk_at
from tests.results.runs import finish_all, registered
from tests.studies import tiny_fields


def points(steps: range, loss: float) -> list[Point]:
    return [Point("train/loss", step, loss, 1.8e9 + step) for step in steps]


def shown(board: EventMultiplexer) -> dict[int, float]:
    """The value at each step, as TensorBoard's Python loader has it after another look at the folder."""
    board.Reload()
    return {event.step: event.tensor_proto.float_val[0] for event in board.Tensors("run", "train/loss")}


def test_a_board_that_is_watching_shows_the_points_of_the_resumed_attempt_instead_of_the_lost_ones(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    killed = RunEvents(folder, points(range(10), 1.0))
    board = EventMultiplexer()
    board.AddRunsFromDirectory(str(tmp_path))
    assert list(shown(board)) == list(range(10))
    killed.flush()
    # The checkpoint was that of step 5.
    resumed = RunEvents(folder, points(range(6), 1.0))
    for point in points(range(6, 8), 2.0):
        resumed.add(point)
    resumed.flush()
    assert shown(board) == {step: 1.0 if step < 6 else 2.0 for step in range(8)}
    resumed.close()
    assert len(list(folder.glob("events.*"))) == 1


def test_attempts_within_a_second_and_on_a_node_whose_clock_is_behind_are_shown_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    RunEvents(folder, points(range(4), 0.0)).flush()
    (first,) = folder.glob("events.*")
    ahead = first.rename(first.with_name(first.name.replace(first.name.split(".")[3], str(int(time.time()) + 3600))))
    board = EventMultiplexer()
    board.AddRunsFromDirectory(str(tmp_path))
    assert shown(board) == dict.fromkeys(range(4), 0.0)
    names = [ahead.name]
    for attempt in range(1, 12):
        resumed = RunEvents(folder, points(range(4), float(attempt)))
        assert shown(board) == dict.fromkeys(range(4), float(attempt))
        (name,) = {path.name for path in folder.glob("events.*")} - set(names)
        assert name > max(names)
        names.append(name)
    resumed.close()
    assert [path.name for path in folder.glob("events.*")] == names[-1:]


def test_event_files_that_a_full_disk_had_no_room_for_are_derived_once_there_is_room(tmp_path: Path) -> None:
    with small_disk_at(tmp_path / "disk", 1) as disk:
        tree, store = registered(disk / "runs")
        finish_all(tree, store)
        for run in store.runs():
            CurveWriter(run.folder, points(range(4), 1.0))
        filler = fill(disk)
        update_event_files(store)
        assert not list(disk.rglob("events.*"))
        filler.unlink()
        update_event_files(store)
        assert [path.stat().st_size > 0 for path in disk.rglob("events.*")] == [True] * len(tree.stages)


def test_stages_of_ones_own_go_by_their_own_names(tmp_path: Path) -> None:
    """Their settings and losses do not hide each other's, and L_im is that after the post-training, wherever it stands."""
    fields = tiny_fields()
    own = {"corpus": "general", "tokens": 640, "lr": 1e-3, "batch": 8}
    tree, store = registered(
        tmp_path / "runs",
        stages=["pretrain", "posttrain", "settle", "finetune"],
        settle=own,
        finetune=fields["finetune"] | {"lr": 5e-4},
    )
    finish_all(tree, store)
    run = store.run(tree.trials[0].leaf)
    settings, found = run_results(store, run.spec(), run.losses()["splits"])
    assert (settings["settle.lr"], settings["finetune.lr"]) == (1e-3, tree.trials[0].axes["finetune.lr"])
    posttrained = store.run(tree.trials[0].key("posttrain")).losses()["splits"]
    assert found["immediate_posttraining_loss"] == posttrained["posttraining"]["loss"]
    above = store.run(tree.trials[0].key("settle"))
    settings, found = run_results(store, above.spec(), above.losses()["splits"])
    assert {name for name in settings if name.endswith(".lr")} == {"pretrain.lr", "posttrain.lr", "settle.lr"}
    assert "settle/settle" in found
    assert not any(name.startswith("further") for name in (*settings, *found))
