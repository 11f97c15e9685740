"""The curves of a run: curves.jsonl in its folder, one point a line. TensorBoard's files are derived from it.

A point is appended as soon as it is measured; readers skip a last line that is not complete yet. A resumed attempt replaces the
file by the points up to its checkpoint, so curves have neither gaps nor overlaps.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.sweeps.base.documents import parsed, read_bytes
from retain.sweeps.base.files import write_text

CURVES = "curves.jsonl"
"""The file in the folder of a run."""
Curve = Sequence[tuple[int, float]]
"""(tokens seen, value), by ascending tokens."""


@dataclass(frozen=True)
class Point:
    """One measurement."""

    curve: str
    """As `training_curve` and `heldout_curve` name it."""
    tokens: int
    """Tokens that the stage has seen."""
    value: float
    time: float
    """Seconds since 1970."""


def training_curve(stage: str, name: str) -> str:
    """The name of a training curve of a stage: loss (nats per token), learning_rate or tokens_per_second."""
    return f"{stage}/{name}"


def heldout_curve(split: str) -> str:
    """The name of the curve of losses (nats per token) on a held-out split: pretraining, posttraining or finetuning."""
    return f"heldout/{split}"


def is_measured_speed(curve: str) -> bool:
    """Whether a curve holds measured speeds, which differ between bit-identical runs."""
    return curve.endswith("tokens_per_second")


class CurveWriter:
    """Writes the points of one attempt.

    points: those up to the checkpoint that the attempt resumes from; `add` extends this list.
    """

    def __init__(self, folder: Path, points: list[Point] | None = None) -> None:
        self.path, self.points = folder / CURVES, [] if points is None else points
        self.is_whole = False
        """Whether the file ends with the last point: on a full disk it may end with half of a line."""
        self.rewrite()

    def add(self, point: Point) -> None:
        """Append a point. Raises OSError if it cannot be written; the next point that can be, or `rewrite`, then brings it."""
        self.points.append(point)
        if not self.is_whole:
            self.rewrite()
            return
        self.is_whole = False
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(point))
        self.is_whole = True

    def rewrite(self) -> None:
        """Replace the file by all points, synced to disk."""
        write_text(self.path, "".join(map(_line, self.points)))
        self.is_whole = True


def read_points(folder: Path) -> list[Point]:
    """All points of a run, in the order in which they were measured; empty if there are none yet. Raises DamageError."""
    path, cure = folder / CURVES, "delete this file; the run's losses do not depend on it"
    try:
        *lines, last = read_bytes(path, cure).split(b"\n")
    except FileNotFoundError:
        return []
    if last and not last.startswith(b"{"):  # otherwise the last line is not complete yet
        lines.append(last)
    return [parsed(line, Point, f"{path}: line {number}", cure) for number, line in enumerate(lines, start=1)]


def ends_whole(folder: Path) -> bool:
    """Whether the last line of the curves, if there are any, is complete, as it is in a done run. Raises DamageError."""
    read_points(folder)
    try:
        content = read_bytes(folder / CURVES, "")
    except FileNotFoundError:
        return True
    return not content or content.endswith(b"\n")


def read_curves(folder: Path) -> dict[str, Curve]:
    """The curves of a run by name, also while the run is running."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in read_points(folder):
        found.setdefault(point.curve, []).append((point.tokens, point.value))
    return {name: sorted(curve) for name, curve in found.items()}


def drop_events(folder: Path) -> bool:
    """Remove TensorBoard's files of a run, if its curves are there to derive them from; returns whether there were any."""
    files = list(folder.glob("events.*")) if (folder / CURVES).exists() else []
    for file in files:
        file.unlink(missing_ok=True)
    return bool(files)


def _line(point: Point) -> str:
    return json.dumps(asdict(point), allow_nan=False) + "\n"
