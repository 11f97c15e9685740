"""`--until decided`: seeds that are added in blocks, at looks that are fixed and written down before anything is trained."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from retain.results.store.study_files import (
    LOOKS,
    SavedLook,
    SavedLooks,
    looks_ended,
    looks_of,
    seeds_of_looks,
    study_folder,
)
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.processes.locks import short_lock
from retain.sweeps.schema.read import StudyFile

Until = Literal["decided"]
BLOCK = 2
"""The number of seeds that are added at a time, if nobody says."""
MOST = 100
"""The most seeds of a study with looks."""


@dataclass(frozen=True)
class Schedule:
    """The seeds of a study up to the most, and how many of them each look has."""

    own: list[int]
    """The seeds of the study file."""
    seeds: list[int]
    """All seeds, in the order in which they are added."""
    counts: list[int]
    """The number of seeds at each look, ascending; the last is the most."""
    block: int
    """The number of seeds that are added at a time."""


def check_options(until: Until | None, most: int | None, block: int | None) -> None:
    """Raise StudyError for options of looks without `--until decided`, or out of range."""
    if until not in (None, *get_args(Until)):
        raise StudyError(f"--until {until}: unknown value; write decided, or leave --until out")
    for option, value in (("--most", most), ("--block", block)):
        if until is None and value is not None:
            raise StudyError(f"{option} {value} applies to --until decided only; add it, or leave {option} out")
    if most is not None and not 2 <= most <= MOST:
        raise StudyError(f"--most {most}: a verdict needs 2 seeds, and {MOST} are the most; choose a number between")
    if block is not None and block < 1:
        raise StudyError(f"--block {block}: at least one seed is added at a time; choose a larger number")


def schedule(file: StudyFile, most: int, block: int | None = None) -> Schedule:
    """The seeds of a study, those of its file first, and the looks at them.

    The first look has all seeds of the file, and at least two; each later one has `block` more, up to `most`. The seeds that
    are added follow the largest of the file: 0, 1, 2 are followed by 3, 4, and so on.

    Raises StudyError if the file has more seeds than `most`, or if repetitions vary anything but `seed`.
    """
    _check_repetitions(file)
    block = block or BLOCK
    own = own_seeds(file)
    if len(own) > most:
        raise StudyError(
            f"{file.path.name}: seed: the study has {len(own)} seeds, and --most {most} allows fewer; raise --most"
        )
    following = range(max(own) + 1, max(own) + 1 + most - len(own))
    first = min(most, max(len(own), 2, block if len(own) == 1 else 0))
    counts = [*range(first, most, block), most]
    return Schedule(own, [*own, *following], counts, block)


def own_seeds(file: StudyFile) -> list[int]:
    """The values of the axis `seed` of a study, or its one seed."""
    return list(file.axes.get("seed", [file.study.seed]))


def seeds_override(seeds: Sequence[int]) -> str:
    """The override that gives a study these seeds, such as `seed=[0,1,2]`."""
    return f"seed=[{','.join(map(str, seeds))}]"


def with_recorded_seeds(file: StudyFile, store: Path) -> StudyFile:
    """A study as its looks have it: with the seeds added so far. Other seeds than those of its file stay as they are."""
    looks = looks_of(store, file.study.study)
    if looks is None or own_seeds(file) != looks["own"]:
        return file
    return replace(file, axes={**file.axes, "seed": seeds_of_looks(looks)})


def has_look_left(file: StudyFile, looks: SavedLooks | None) -> bool:
    """Whether a look at the results of a study, as its looks have it, is to come; it may add seeds."""
    return looks is not None and own_seeds(file) == seeds_of_looks(looks) and not looks_ended(looks)


def fixed_looks(file: StudyFile, store: Path, most: int | None, block: int | None) -> SavedLooks | None:
    """The looks that the store has of a study; None if none are fixed yet.

    Raises StudyError if the study was changed since, or if other numbers are asked for: a choice after a look at results would
    void the error rate.
    """
    study = file.study.study
    looks = looks_of(store, study)
    if looks is None:
        return None
    place = study_folder(store, study) / LOOKS
    recorded = looks["counts"][-1], looks["block"]
    if (most or recorded[0], block or recorded[1]) != recorded:
        raise StudyError(
            f"{study}: its looks were fixed before training ({place}) with --most {recorded[0]} --block {recorded[1]}, "
            "and cannot change after a look at results; leave both options out to continue"
        )
    if looks["design"] != design(file) or looks["own"] != own_seeds(file):
        raise StudyError(
            f"{study}: the study was changed since its looks were fixed before training ({place}); change it back, or give the "
            "changed one another name and fresh seeds, as in study=NAME seed=[100]"
        )
    return looks


def fix_looks(file: StudyFile, store: Path, planned: Schedule) -> SavedLooks:
    """Write the looks of a study into an existing store, before anything is trained; returns those that another process wrote
    first."""
    folder = study_folder(store, file.study.study)
    folder.mkdir(parents=True, exist_ok=True)
    with short_lock(folder / f".{LOOKS}.lock"):
        if (present := fixed_looks(file, store, planned.counts[-1], planned.block)) is not None:
            return present
        looks: SavedLooks = {**vars(planned), "design": design(file), "made": []}  # type: ignore[typeddict-item]
        write_document(folder / LOOKS, looks)
        return looks


def add_look(store: Path, study: str, look: SavedLook) -> SavedLooks:
    """Add a look to those made of a study; returns all. A look that another process has added meanwhile is not added again."""
    place = study_folder(store, study) / LOOKS
    with short_lock(place.with_name(f".{LOOKS}.lock")):
        looks = looks_of(store, study)
        if looks is None:
            raise StudyError(f"{place} was deleted during the run; without it no verdict keeps its error rate")
        if look["seeds"] > max((one["seeds"] for one in looks["made"]), default=0) and not looks_ended(looks):
            looks["made"].append(look)
            write_document(place, looks)
        return looks


def design(file: StudyFile) -> str:
    """A fingerprint of a study's fields but for its name, its seeds and its resources."""
    fields: dict[str, Any] = file.study.model_dump(mode="json", exclude_defaults=True)
    apart = ("study", "seed", "execution", "search", "grid")
    grid = {axis: values for axis, values in fields.get("grid", {}).items() if axis != "seed"}
    text = json.dumps([{name: part for name, part in fields.items() if name not in apart}, grid], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_repetitions(file: StudyFile) -> None:
    name = file.path.name
    if any(name.endswith(".seed") for name in file.labels):
        raise StudyError(
            f"{name}: --until decided adds values of seed, and a stage has an axis of seeds; use the axis seed"
        )
    if any("seed" in option.fields for options in file.cases.values() for option in options):
        raise StudyError(f"{name}: cases: --until decided adds values of seed, and cases set it; use the axis seed")
