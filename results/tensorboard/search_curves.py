"""How a search went, for TensorBoard: the best so far and the points that ended, over the tokens that the search had spent."""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.results.analysis.search_summary import Result, frontier_area, recommended
from retain.results.tensorboard.events import digest_of
from retain.sweeps.base.files import write_bytes
from retain.sweeps.schema.search_space import Search


@dataclass(frozen=True)
class End:
    """The end of a point, and what the search had spent by then."""

    point: str
    state: str
    """done, pruned or failed."""
    tokens: int
    device_hours: float


def curve_points(search: Search, ends: Sequence[End], results: Sequence[Result]) -> Iterator[tuple[str, int, float]]:
    """Tag, tokens spent and value of all points of the curves, in the order in which the search's points ended.

    results: of the points that are done, by whatever order. Points that ended at the same number of tokens, such as those
    that the store had already, are one point of each curve. The best so far is the lowest objective among the points that
    kept the constraints, as the points done by then define them; of a frontier, the area that those points dominate up to the
    worst losses of all points done to this day, so that it grows unless a constraint `within` has tightened.
    """
    by_label = {one.label: one for one in results}
    states: dict[str, str] = {}
    for number, end in enumerate(ends):
        states[end.point] = end.state
        if number + 1 < len(ends) and ends[number + 1].tokens == end.tokens:
            continue
        for state in ("done", "pruned", "failed"):
            yield f"search/points {state}", end.tokens, float(list(states.values()).count(state))
        yield "search/device-hours", end.tokens, end.device_hours
        done = [by_label[label] for label, state in states.items() if state == "done" and label in by_label]
        best = recommended(search, done)
        if area := frontier_area(search, done, worst_of=results):
            yield "search/best frontier area", end.tokens, area
        elif best and not search.block.objective.hypervolume:
            yield "search/best objective", end.tokens, best[0].scores[0]


def write_curves(folder: Path, search: Search, ends: Sequence[End], results: Sequence[Result]) -> None:
    """Write the event file of a study's search anew into its folder of curves."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    points = list(curve_points(search, ends, results))
    summaries = [Summary(value=[Summary.Value(tag=tag, simple_value=value)]) for tag, _, value in points]
    content, now = io.BytesIO(), time.time()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    # A TensorBoard that is watching forgets what the file before has told it.
    writer.write(Event(wall_time=now, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
    for (_, tokens, _), summary in zip(points, summaries, strict=True):
        writer.write(Event(wall_time=now, step=tokens, summary=summary).SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob("events.*"))
    path = folder / f"events.out.tfevents.{time.time_ns():020d}.{digest_of(summaries)}"
    write_bytes(path, content.getvalue())
    for old in before:
        old.unlink(missing_ok=True)
