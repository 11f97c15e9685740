"""What a search keeps in the store: the points that it has proposed and what it found there. Losses are in the runs."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retain.results.store.runs import Store
from retain.results.store.study_files import HISTORY, PointState, read_history, study_folder
from retain.results.tensorboard.search_curves import End
from retain.sweeps.base.documents import write_document
from retain.sweeps.schema.search_space import Values

HELDOUT = "held-out loss"
"""The loss of a post-training at a rung."""
Losses = Mapping[str, float]
"""Losses (nats per token) by name: HELDOUT for a post-training; for a fine-tuning those losses of its trial that are known."""


@dataclass(frozen=True)
class Point:
    """One proposed point. by: the searcher that proposed it."""

    number: int
    values: Values
    by: str

    @property
    def label(self) -> str:
        return f"p{self.number}"


@dataclass
class History:
    """The content of search.json, replaced atomically at every change, so that a killed search loses no proposed point."""

    path: Path
    identity: str
    points: list[Point] = field(default_factory=list)
    found: set[str] = field(default_factory=set)
    """Stages that the store already had when the search needed them; they cost the search nothing."""
    pruned: dict[str, str] = field(default_factory=dict)
    """Stages given up at a rung or a probe, with the reason."""
    rungs: dict[str, dict[str, Losses]] = field(default_factory=dict)
    """For each post-training, its losses at the rungs that it has reached, by tokens; see `early_stopping`."""
    probes: dict[str, dict[str, Losses]] = field(default_factory=dict)
    """For each fine-tuning, its losses at the probe, by tokens."""
    ends: list[End] = field(default_factory=list)
    """The ends of points in order; a failed point that was tried again may occur twice."""
    states: dict[str, PointState] = field(default_factory=dict)
    """The state of each point by its label, for readers; the search itself reads the store."""

    def save(self) -> None:
        points = [asdict(point) | {"state": self.states.get(point.label, "planned")} for point in self.points]
        document: dict[str, Any] = {"identity": self.identity, "points": points}
        rungs = {key: {at: losses[HELDOUT] for at, losses in own.items()} for key, own in self.rungs.items()}
        document |= {"found": sorted(self.found), "pruned": self.pruned, "rungs": rungs, "probes": self.probes}
        write_document(self.path, document | {"ends": [asdict(end) for end in self.ends]})


def open_history(path: Path, identity: str) -> tuple[History, str | None]:
    """The history of a study as it is now: the one at `path`, one that was put aside before, or an empty one.

    The second value is a note if the history at `path` was of another study and is put aside, or if an earlier one is restored.
    """
    notes = []
    if os.path.lexists(path) and (other := read_history(path)["identity"]) != identity:
        aside = _free(_aside(path, other))
        path.rename(aside)
        notes = [f"the study has changed since the last search, whose history is kept as {aside}"]
    if not path.exists() and (before := _aside(path, identity)).exists():
        before.rename(path)
        notes.append("it is the same as in an earlier search, which is continued")
    elif notes:
        notes.append("its stages stay in the store")
    return _read(path, identity) if path.exists() else History(path, identity), "; ".join(notes) or None


def point_counts(store: Store, study: str) -> dict[str, int]:
    """The number of points of a search in each state, as they were last entered."""
    try:
        history = read_history(study_folder(store.root, study) / HISTORY)
    except FileNotFoundError:
        return {}
    return dict(Counter(point["state"] for point in history["points"]))


def _aside(path: Path, identity: str) -> Path:
    return path.with_name(f"{path.stem}.{identity}{path.suffix}")


def _free(path: Path) -> Path:
    """This path or, if it exists, one with a number added to its name."""
    numbered = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists())


def _read(path: Path, identity: str) -> History:
    kept = read_history(path)
    points = [Point(point["number"], point["values"], point["by"]) for point in kept["points"]]
    return History(
        path,
        identity,
        points,
        found=set(kept["found"]),
        pruned=kept["pruned"],
        rungs={key: {at: {HELDOUT: loss} for at, loss in own.items()} for key, own in kept["rungs"].items()},
        probes={key: dict(own) for key, own in kept.get("probes", {}).items()},
        ends=[End(**end) for end in kept.get("ends", [])],
        states={point.label: entry["state"] for point, entry in zip(points, kept["points"], strict=True)},
    )
