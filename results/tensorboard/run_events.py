"""TensorBoard's event files of a run, derived from its curves, its recipes and its losses."""

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.results.store.curves import Point, drop_events, read_points
from retain.results.store.loss_table import four_losses
from retain.results.store.runs import Run, Store
from retain.results.tensorboard.events import hyperparameter_summaries, stage_metric
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.key_diff import stage_name

SETTINGS = ("lr", "min_lr", "schedule", "optimizer", "batch", "dropout", "weight_decay", "seed", "steps")
"""Recipe fields that TensorBoard shows as hyperparameters."""
MARK = ".named-by-stage"
"""The end of the name of an event file whose losses are named by stage. Earlier files misnamed those of a post-training."""


class RunEvents:
    """Mirrors the curves of a running attempt for TensorBoard, in one event file that replaces those of earlier attempts."""

    def __init__(self, folder: Path, points: Iterable[Point] = ()) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.replaced = list(folder.glob("events.*"))
        self.writer = RecordWriter((folder / _next_name(self.replaced)).open("wb"))
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # Makes a TensorBoard that is watching forget the files of earlier attempts.
        self._record(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for point in points:
            self.add(point)
        self.flush()
        for path in self.replaced:
            # Emptied now and removed at the end: TensorBoard's Python loader never leaves a watched file that is gone.
            os.truncate(path, 0)

    def add(self, point: Point) -> None:
        self._record(_scalar(point.curve, point.value, point.tokens, point.time))

    def add_results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """Add the final losses (nats per token) of a run, and its hyperparameters."""
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time()
        for name, loss in losses.items():
            self._record(_scalar(f"losses/{name}", loss, 0, now))
        for summary in hyperparameter_summaries(hyperparameters, list(losses)):
            self._record(Event(wall_time=now, summary=summary))

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        for path in self.replaced:
            path.unlink(missing_ok=True)

    def _record(self, event: Any) -> None:
        self.writer.write(event.SerializeToString())


def _next_name(earlier: Sequence[Path]) -> str:
    """Name of an event file that TensorBoard reads after the earlier ones: it goes by name, so by the second in the name.

    Two attempts can begin within a second, and the clock of the second one's node can be behind.
    """
    seconds = [int(found[1]) for path in earlier if (found := re.search(r"\.tfevents\.(\d+)\.", path.name))]
    after = max([int(time.time()), *(second + 1 for second in seconds)])
    return f"events.out.tfevents.{after:010d}.{socket.gethostname()}.{os.getpid()}.0{MARK}"


def run_results(
    store: Store, spec: Mapping[str, Any], losses: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, float]]:
    """What TensorBoard shows of a run that ends: the settings along its path, and its losses (nats per token).

    The name of a loss says after which stage and on which split it is measured. A fine-tuning ends a trial, so it also has the
    trial's four losses by their own names. losses: by split.
    """
    settings: dict[str, Any] = {}
    path = [spec]
    while parent := path[0]["parent"]:
        path.insert(0, store.run(parent).spec())
    for stage in path:
        settings |= {
            f"{stage_name(stage)}.{name}": _setting(stage["recipe"][name])
            for name in SETTINGS
            if name in stage["recipe"]
        }
    settings |= {name: _setting(value) for name, value in spec["axes"].items()}
    found = {stage_metric(stage_name(spec), split): float(loss["loss"]) for split, loss in losses.items()}
    if spec["stage"] == STAGE_KINDS[-1]:
        before = [store.run(stage["key"]).losses()["splits"] for stage in path[:-1]]
        four = four_losses([*before, losses], [stage_name(stage) for stage in path])
        found = {name: loss for name, loss in four.items() if loss is not None} | found
    return settings, found


def _setting(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else json.dumps(value)


def needs_events(names: Sequence[str]) -> bool:
    """Whether the event files of a run that is done, by their names, are missing or from before losses were named by stage."""
    return not any(name.startswith("events.") and name.endswith(MARK) for name in names)


def derive_events(store: Store, run: Run) -> None:
    """Write the event file of a run from its curves and, once it is done, from its losses; replaces an earlier file.

    Raises OSError if it cannot be written; half of it, on a full disk, is removed.
    """
    points, done = read_points(run.folder), run.is_done()
    if not points or (not done and any(run.folder.glob("events.*"))):
        return
    try:
        events = RunEvents(run.folder, points)
        if done:
            events.add_results(*run_results(store, run.spec(), run.losses()["splits"]))
        events.close()
    except OSError:
        drop_events(run.folder)
        raise


def _scalar(tag: str, value: float, step: int, when: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=when, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
