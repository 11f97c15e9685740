"""Find and remove what nothing in a store needs any more.

Only files with known names are touched, and no file of a run whose lease a living process holds.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.results.store.disk import used_bytes
from retain.results.store.lease import try_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import OPTIMIZER, PART, State, StateSummary
from retain.sweeps.base.building import new_build_folder
from retain.sweeps.base.documents import unreadable
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError, os_reason
from retain.sweeps.base.files import file_system_time, remove
from retain.sweeps.base.processes.names import is_gone, is_here, process_start
from retain.sweeps.tree.keys import CARRY

if TYPE_CHECKING:
    from retain.sweeps.tree.tree import Stage

CHECKPOINT, LEFTOVER, WEIGHTS, PARTS = "checkpoints", "leftover", "weights", "parts"
DOWNLOADS = "downloads"
ASSEMBLE = "assemble"
"""The kind of runs that put parts together; see `launchers.kinds`."""
QUIET_S = 3600.0
"""Seconds without a change after which a temporary file counts as a leftover, by the clock of the file system."""
QUIET_ELSEWHERE_S = 86_400.0
"""The same for half-prepared data of another machine."""

TEMPORARY = re.compile(r"\..+\.(?P<pid>[0-9]+)\.[0-9a-f]{6,16}")
"""The names of temporary files of sweeps.base.files and results.store.lease."""
PROBE = re.compile(r"\.probe\..+\.[0-9]+")
BUILDING = re.compile(r"(?P<process>[0-9a-f]+\.[0-9]+\.\w+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Waste:
    """Something that nothing needs: its kind, its size in bytes, why it may be removed, and the run it belongs to, if any."""

    path: Path
    run: str | None
    kind: str
    bytes: int
    reason: str


def find_waste(
    store: Store, keys: Collection[str] | None, weights: bool, stages: Mapping[str, "Stage"] | None = None
) -> list[Waste]:
    """What may be removed: from the runs of `keys`, or from the whole store if `keys` is None.

    weights: whether to include the weights of done runs that are not pinned and that other runs of the store need, all of them
    done. stages: those of a study, with its evaluations; what those need that are not done is kept, also where the store does
    not have them yet. Damaged runs keep everything, and a notice says so. Raises DamageError with `weights`, as a damaged run
    may start from any.
    """
    runs = store.runs()
    # The folder of a run may also be a link to a place that is not the store's.
    chosen = {run.key for run in runs if (keys is None or run.key in keys) and not run.folder.is_symlink()}
    names: dict[str, set[str]] = {}

    def of_run(run: Run) -> list[Waste]:
        names[run.key] = _names(run) if run.key in chosen else set()
        return list(_of_run(run, names[run.key]))

    found = [waste for own in store.read_all(of_run).values() for waste in own]
    if parts := {key for key in names if PART in names[key]}:
        found += _of_parts(store, parts)
    if weights:
        found += _of_weights(runs, chosen, stages or {})
    hidden = [(store.root / key / name, key) for key in names for name in names[key] if name.startswith(".")]
    temporary = [_temporary(path, key) for path, key in hidden]
    if keys is None:
        temporary += _of_store(store.root)
    return found + _quiet(store.root, [waste for waste in temporary if waste])


def free(store: Store, waste: Waste) -> str | None:
    """Remove something, if that is still allowed; returns None, or why it is kept, in one sentence."""
    try:
        if waste.run is None:
            remove(waste.path)
            return None
        run = store.run(waste.run)
        if run.is_running():
            return "a process is working on the run"
        if waste.kind == WEIGHTS:
            return _free_weights(run)
        if run.is_done():
            remove(_aside(store, waste.path) if waste.kind == PARTS else waste.path)
            return None
        if waste.kind in (CHECKPOINT, PARTS):
            return "the run is no longer done"
        with try_lease(run.lease) as held:
            if not held:
                return "a process is working on the run"
            remove(waste.path)
    except OSError as error:
        return f"it cannot be removed ({os_reason(error)})"
    except MissingResourceError as error:
        return str(error)
    return None


def set_pin(run: Run, pinned: bool) -> None:
    """Protect a run's weights from `gc --weights`, or end the protection. Raises StudyError if the run has no weights."""
    if not pinned:
        _pin(run).unlink(missing_ok=True)
    elif "measure" in run.spec()["recipe"]:
        raise StudyError(f"{run.key}: the run is a measurement, which has no weights; pin a stage of a study")
    elif run.state().weights_freed:
        raise StudyError(f"{run.key}: the weights have been freed already; {_retrain([run])}")
    else:
        _pin(run).touch()


def is_pinned(run: Run) -> bool:
    return _pin(run).exists()


def check_starts(store: Store, stages: Mapping[str, "Stage"], states: Mapping[str, StateSummary]) -> None:
    """Check that no stage of a tree that must be trained starts from freed weights. Raises MissingResourceError."""
    needed: dict[str, Run] = {}
    # Children before parents: to train a run again takes what it starts from itself.
    for stage in reversed(list(stages.values())):
        if states[stage.key].state != "done" or stage.key in needed:
            needed |= {need: store.run(need) for need in stage.needs if states[need].weights_freed}
    if needed:
        raise MissingResourceError(freed_sentence(list(needed.values())))
    carrying = dict.fromkeys(
        stage.parent
        for key, stage in stages.items()
        if states[key].state != "done"
        and stage.parent
        and states[stage.parent].state == "done"
        and CARRY in stage.recipe
    )
    check_kept_optimizer({run: run.state() for run in map(store.run, carrying)})


def check_kept_optimizer(done: Mapping[Run, State]) -> None:
    """Check that done runs have kept AdamW's moments, for stages that continue with them. Raises MissingResourceError."""
    lacking = [run for run, state in done.items() if f"model/{OPTIMIZER}" not in state.checksums]
    if lacking:
        one = len(lacking) == 1
        raise MissingResourceError(
            f"{', '.join(run.key for run in lacking)} {'was' if one else 'were'} trained before any stage continued with "
            f"{'its optimizer, so its' if one else 'their optimizers, so their'} moments were not kept; {_retrain(lacking)} "
            f"and keeps the moments, or remove start from the stage below {'it' if one else 'them'}"
        )


def freed_sentence(runs: list[Run]) -> str:
    """The error message that the weights of these runs are needed but freed, with the cure."""
    return f"retain gc --weights has freed weights that are needed to start from; {_retrain(runs)}"


def _retrain(runs: list[Run]) -> str:
    folders = " ".join(str(run.folder) for run in runs)
    return f"delete {folders} and run the study, which trains {'it' if len(runs) == 1 else 'them'} again"


def _pin(run: Run) -> Path:
    return run.folder / "pin"


def _names(run: Run) -> set[str]:
    """The names in the folder of a run. Raises DamageError."""
    try:
        return set(os.listdir(run.folder))
    except OSError as error:
        raise unreadable(run.folder, error, "check the file system") from error


def _of_run(run: Run, names: set[str]) -> Iterator[Waste]:
    """The checkpoints of a done run, and what a dead attempt left half written."""
    places = [run.folder / name for name in names if name.endswith(".partial")]
    if not (places or "checkpoint" in names) or run.is_running():
        return
    if run.is_done() and run.checkpoint.is_dir() and not run.checkpoint.is_symlink():
        yield Waste(run.checkpoint, run.key, CHECKPOINT, used_bytes(run.checkpoint), "the run is done")
    else:
        places += [*run.checkpoint.glob(".*"), *run.checkpoint.glob("*.partial")]
    for place in sorted(places):
        yield Waste(place, run.key, LEFTOVER, used_bytes(place), "a dead attempt left it half written")


def _of_parts(store: Store, parts: set[str]) -> Iterator[Waste]:
    """Those of these parts of corpora that are put together."""
    users: dict[str, list[bool]] = {}
    for run in store.runs():
        with contextlib.suppress(DamageError, FileNotFoundError):
            if run.spec().get("kind") == ASSEMBLE:
                for need in run.needs():
                    users.setdefault(need, []).append(run.is_done())
    for key in sorted(users.keys() & parts):
        if all(users[key]) and store.run(key).is_done():
            folder = store.run(key).folder
            reason = "the corpora made from it are prepared"
            yield Waste(folder, key, PARTS, used_bytes(folder), reason)


def _aside(store: Store, folder: Path) -> Path:
    """Move the folder of a run out of the way, so that nobody finds half of it. Returns its place."""
    place = new_build_folder(store.root)
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)
    return place


def _of_weights(runs: list[Run], chosen: set[str], stages: Mapping[str, "Stage"]) -> Iterator[Waste]:
    """The weights of the chosen runs that no run of the store, and none of these stages, needs any more.

    A measurement that was cancelled needs nothing, unless it is one of these stages. Reference log-probabilities stay: they are
    small, and whatever is trained below their stages is measured by them.
    """
    from retain.sweeps.schema.section import REFERENCE  # imports pydantic, which jobs do without

    done = {run.key for run in runs if run.is_done()}
    users: dict[str, set[str]] = {}
    measured: set[str] = set()
    for run in runs:
        if "measure" in run.spec()["recipe"]:
            measured.add(run.key)
            if run.state().state == "cancelled":
                continue
        for need in run.needs():
            users.setdefault(need, set()).add(run.key)
    for stage in stages.values():
        for need in stage.needs:
            users.setdefault(need, set()).add(stage.key)
    for run in runs:
        using = users.get(run.key, set())
        # A stage that is only measured is the end of its path: its weights are results.
        if run.key not in chosen & done or using <= measured or not using <= done:
            continue
        if run.spec()["recipe"].get("measure") == REFERENCE:
            continue
        files = _weight_files(run)
        if files and not is_pinned(run) and not run.is_running():
            size = sum(used_bytes(file) for file in files)
            reason = f"all runs that need them are done ({len(using):,})"
            yield Waste(run.model, run.key, WEIGHTS, size, reason)


def _weight_files(run: Run) -> list[Path]:
    return [path for path in sorted(run.model.glob("*")) if _is_weights(path.name)]


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _free_weights(run: Run) -> str | None:
    """Record in the state that the weights are gone, then remove them: a process killed in between leaves a true state."""
    state = run.state()
    if is_pinned(run):
        return "it is pinned"
    if state.state != "done":
        return "the run is no longer done"
    if not state.weights_freed and not run.free_weights(lambda name: not _is_weights(name)):
        return "the run is no longer done"
    for file in _weight_files(run):
        file.unlink(missing_ok=True)
    return None


def _of_store(root: Path) -> Iterator[Waste | None]:
    """Temporary files outside the runs, and half-prepared data."""
    if not root.is_dir():
        return
    notes = (root / "prepared", root / "prepared" / "last", root / "prepared" / "asked")
    for folder in (root, root / "cache", *notes, *root.glob("studies/*")):
        if folder.is_dir():
            for name in os.listdir(folder):
                yield _temporary(folder / name, None)
    packed = _packed_commits(root)
    for place in root.glob("downloads/*/download.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(place.read_bytes())
            if _data_set(found, found["commit"]) in packed:
                folder = place.parent
                yield Waste(folder, None, DOWNLOADS, used_bytes(folder), "the corpora read from it are prepared")
    for place in root.glob("building/*"):
        match = BUILDING.fullmatch(place.name)
        if match and (is_gone(match["process"]) or not is_here(match["process"])):
            yield Waste(place, None, LEFTOVER, used_bytes(place), "half-prepared data of a process that is gone")


def _data_set(named: Mapping[str, Any], commit: str) -> tuple[str, ...]:
    """What identifies a data set of the hub at a commit."""
    return (named["hf"], str(named["config"]), named["split"], commit)


def _packed_commits(root: Path) -> set[tuple[str, ...]]:
    """The data sets of the hub that packed corpora of the store were read from."""
    found = set()
    for note in root.glob("prepared/*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            fields = json.loads(note.read_bytes())
            if "commit" in fields and (root / "corpora" / fields["fingerprint"]).is_dir():
                found.add(_data_set(fields["source"], fields["commit"]))
    return found


def _temporary(path: Path, run: str | None) -> Waste | None:
    """A temporary file that no process of this machine is writing; a process of another machine may be writing it."""
    match = TEMPORARY.fullmatch(path.name)
    if match and process_start(int(match["pid"])) is not None:
        return None
    if not match and not PROBE.fullmatch(path.name):
        return None
    return Waste(path, run, LEFTOVER, used_bytes(path), "a temporary file of a process that is gone")


def _quiet(root: Path, found: list[Waste]) -> list[Waste]:
    """The found files and folders that have not changed for long enough."""
    if not found:
        return []
    now = time.time()
    with contextlib.suppress(OSError):
        now = file_system_time(root)
    return [waste for waste in found if _is_quiet(waste.path, now)]


def _is_quiet(path: Path, now: float) -> bool:
    """Whether nothing below a path has changed for long enough; False if the path has vanished."""
    match = BUILDING.fullmatch(path.name)
    try:
        latest = max(place.lstat().st_mtime for place in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False
    return now - latest > (QUIET_ELSEWHERE_S if match and not is_here(match["process"]) else QUIET_S)
