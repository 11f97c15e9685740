"""Check the runs of a store: keys match their payloads, and done runs are complete and unchanged."""

import contextlib
import fnmatch
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.results.store.curves import FILE, ends_whole
from retain.results.store.lease import claim_problem
from retain.results.store.runs import LOSSES, WEIGHTS, Run, Store, sha256_of
from retain.results.store.state import PART, PROBES, State, read_probe
from retain.sweeps.base.documents import unreadable
from retain.sweeps.base.errors import DamageError, os_reason

FOLDERS, FILES = ("model", "checkpoint", PART), (FILE, "log.txt", "pin")
"""What must be a folder, or a file, in the folder of a run; documents are checked when they are read."""


@dataclass(frozen=True)
class Problem:
    """One problem that `retain verify` found."""

    where: str
    """The key of the run, or the path of a file."""
    what: str
    """What is wrong, and the cure."""


def verify_runs(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """Check the runs of `keys`, or all runs if `keys` is None. Returns the number of runs checked and the problems found."""
    runs = [run for run in store.runs() if keys is None or run.key in keys]
    # Several large files are read and hashed at a time.
    with ThreadPoolExecutor(os.cpu_count()) as readers:
        found = list(readers.map(lambda run: run_problems(store, run), runs))
    return len(runs), [Problem(run.key, what) for run, problems in zip(runs, found, strict=True) for what in problems]


def run_problems(store: Store, run: Run) -> list[str]:
    """The problems of one run, one sentence each."""
    found = [*_file_problems(run)]
    spec = state = None
    try:
        spec = run.spec()
    except (DamageError, FileNotFoundError) as error:
        found.append(str(error))
    for place in run.folder.glob(PROBES):
        try:
            read_probe(place)
        except DamageError as error:
            found.append(str(error))
    try:
        state = run.state()
        run.adapted()
        if state.state == "done" and not ends_whole(run.folder):
            found.append(f"{run.folder / FILE}: the last line is not complete; delete this file")
    except FileNotFoundError:  # stage.json, which is a problem already
        pass
    except DamageError as error:
        found.append(str(error))
    with contextlib.suppress(OSError):  # of the folder, which the documents say
        if claim := claim_problem(run.lease):
            found.append(claim)
    if spec is None or state is None or state.state != "done":
        return list(dict.fromkeys(found))
    if damage := damaged_files(run, state, spec):
        found += (f"{what}; delete the run's folder and train it again" for what in damage)
    elif LOSSES in spec.get("leaves", [WEIGHTS, LOSSES]):
        try:
            missing = set(spec["evaluation"]) - set(run.losses()["splits"])
        except DamageError as error:
            return [*found, str(error)]
        if missing:
            what = f"losses.json lacks the split {', '.join(sorted(missing))}"
            found.append(f"{what}; delete the run's folder and train it again")
    with contextlib.suppress(DamageError):  # a damaged parent is reported under its own key
        if spec["parent"] and not store.run(spec["parent"]).is_done():
            found.append(f"the run is done, but its parent {spec['parent']} is not; train the parent again")
    return found


def place_problem(path: Path) -> str | None:
    """What is wrong with what is at a path: a link to nothing, a pipe, or something that may not be read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"{path} is a link to a file that does not exist; delete it" if path.is_symlink() else None
    except OSError as error:
        return str(unreadable(path, error, "delete it"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return f"{path} is neither a file nor a folder; delete it"
    return None if os.access(path, os.R_OK) else f"{path} may not be read; ask its owner for permission to read it"


def _file_problems(run: Run) -> Iterator[str]:
    """What is wrong with the entries of a run's folder, whatever they hold."""
    try:
        with os.scandir(run.folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # the documents say so
        return
    for entry in entries:
        folder, name = entry.is_dir(), entry.name
        if not (folder or entry.is_file()) or not os.access(entry.path, os.R_OK):
            if what := place_problem(Path(entry.path)):
                yield what
        elif name in (*FOLDERS, *FILES) and folder != (name in FOLDERS):
            yield f"{entry.path} is not a {'folder' if name in FOLDERS else 'file'}; delete it"


def damaged_files(run: Run, state: State | None = None, spec: Mapping[str, Any] | None = None) -> list[str]:
    """The files of a done run that are missing or differ from their checksums; freed weights are not missing.

    state, spec: those of the run, if they have been read already.
    """
    state, spec = state or run.state(), spec or run.spec()
    checksums = state.checksums
    leaves = spec.get("leaves", [WEIGHTS, LOSSES])
    expected = [pattern for pattern in leaves if not (state.weights_freed and pattern == WEIGHTS)]
    if absent := [pattern for pattern in expected if not fnmatch.filter(checksums, pattern)]:
        return [f"state.json has no checksum of {absent[0]}"]
    found = []
    for name, checksum in checksums.items():
        path = run.folder / name
        try:
            if not path.is_file():  # a named pipe would block
                found.append(f"{name} is missing, or not a file" if os.path.lexists(path) else f"{name} is missing")
            elif sha256_of(path) != checksum:
                found.append(f"{name} is damaged")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({os_reason(error)})")
    return found
