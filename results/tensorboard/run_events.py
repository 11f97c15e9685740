"""TensorBoard's event files of a run, derived from its curves."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.results.store.curves import Point, read_points
from retain.results.tensorboard.events import hyperparameter_summaries


class RunEvents:
    """Mirrors the curves of a running attempt for TensorBoard, in one event file that replaces those of earlier attempts."""

    def __init__(self, folder: Path, points: Iterable[Point] = ()) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.replaced = list(folder.glob("events.*"))
        self.writer = EventFileWriter(str(folder))
        # Makes a TensorBoard that is watching forget the files of earlier attempts.
        self.writer.add_event(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for point in points:
            self.add(point)
        self.flush()
        for path in self.replaced:
            # Emptied now and removed at the end: TensorBoard's Python loader never leaves a watched file that is gone.
            os.truncate(path, 0)

    def add(self, point: Point) -> None:
        self.writer.add_event(_scalar(point.curve, point.value, point.tokens, point.time))

    def add_results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """Add the final losses (nats per token) of a run, and its hyperparameters."""
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time()
        for name, loss in losses.items():
            self.writer.add_event(_scalar(f"losses/{name}", loss, 0, now))
        for summary in hyperparameter_summaries(hyperparameters, list(losses)):
            self.writer.add_event(Event(wall_time=now, summary=summary))

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
        for path in self.replaced:
            path.unlink(missing_ok=True)


def derive_events(folder: Path) -> None:
    """Write the event file of a run that has curves but no event file yet."""
    points: Sequence[Point] = read_points(folder)
    if points and not any(folder.glob("events.*")):
        RunEvents(folder, points).close()


def _scalar(tag: str, value: float, step: int, when: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(wall_time=when, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
