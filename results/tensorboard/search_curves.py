"""The curves of a search: the best so far and the points that ended, over the tokens that the search had spent."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.results.analysis.search_summary import Result, frontier_area, recommended
from retain.results.store.curves import CurveWriter, Point
from retain.results.tensorboard.run_events import RunEvents
from retain.sweeps.schema.search_space import SearchSpace


@dataclass(frozen=True)
class End:
    """The end of a point, and what the search had spent by then."""

    point: str
    state: str
    """done, pruned or failed."""
    tokens: int
    device_hours: float


def curve_points(
    space: SearchSpace, ends: Sequence[End], results: Sequence[Result]
) -> Iterator[tuple[str, int, float]]:
    """The points of the curves: name, tokens spent and value, in the order in which the points of the search ended.

    results: those of the points that are done, in any order. Points that ended at the same number of tokens, such as those
    that the store already had, give one point of each curve. The best so far is the lowest objective among the points that
    kept the constraints, as the points done by then define them. With a frontier it is the area that those points dominate up
    to the worst losses of all points done so far, so it grows unless a constraint `within` has tightened.
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
        best = recommended(space, done)
        if area := frontier_area(space, done, worst_of=results):
            yield "search/best frontier area", end.tokens, area
        elif best and not space.block.objective.hypervolume:
            yield "search/best objective", end.tokens, best[0].scores[0]


def write_curves(folder: Path, space: SearchSpace, ends: Sequence[End], results: Sequence[Result]) -> None:
    """Rewrite the curves of a search in the folder of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    points = [Point(tag, tokens, value, now) for tag, tokens, value in curve_points(space, ends, results)]
    CurveWriter(folder, points)
    RunEvents(folder, points).close()
