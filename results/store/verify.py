"""Check the runs of a store: keys match their payloads, and done runs are complete and unchanged."""

import contextlib
import fnmatch
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retain.results.store.curves import CURVES, ends_whole
from retain.results.store.lease import claim_problem
from retain.results.store.runs import ADAPTED, LOG, LOSSES, WEIGHTS, Run, Store, sha256_of
from retain.results.store.state import PART, PROBES, State, read_probe
from retain.sweeps.base.documents import unreadable
from retain.sweeps.base.errors import DamageError, os_reason

Found = TypeVar("Found")
FOLDERS, FILES = ("model", "checkpoint", PART), (CURVES, LOG, "pin")
"""What must be a folder, or a file, in the folder of a run; documents are checked when they are read."""
AT_A_TIME, IN_A_ROW, READERS = 256, 8, 8
"""The number of runs whose documents are in memory at a time, of those that a thread checks one after the other, and of
threads."""


@dataclass(frozen=True)
class Problem:
    """One problem that `retain verify` found."""

    where: str
    """The key of the run, or the path of a file."""
    what: str
    """What is wrong, and how to fix it."""


class ReadOnce(Run):
    """A run whose documents are each read once, however many checks need them. Its state is that of the first check."""

    # Not functools.cached_property: before Python 3.12 it lets only one thread at a time read, whichever the run.

    @property
    def entries(self) -> Mapping[str, os.DirEntry[str]]:
        """The entries of its folder by name, in order; empty if the folder cannot be read, which reading a document reports."""
        return self._once("entries", lambda: _entries(self.folder))

    def spec(self) -> dict[str, Any]:
        return self._once("spec", super().spec)

    def state(self) -> State:
        return self._once("state", super().state)

    def losses(self) -> dict[str, Any]:
        return self._once("losses", super().losses)

    def _once(self, name: str, read: Callable[[], Found]) -> Found:
        known = vars(self).setdefault("read", {})
        if name not in known:
            known[name] = read()
        found: Found = known[name]
        return found


def chosen_runs(store: Store, keys: Collection[str] | None) -> list[Run]:
    """The runs of a store that have these keys; all if `keys` is None."""
    return [run for run in store.runs() if keys is None or run.key in keys]


def checked_runs(store: Store, runs: Sequence[Run]) -> Iterator[tuple[ReadOnce, list[str]]]:
    """Each of these runs, as it was read, with its problems."""
    done: dict[str, bool] = {}

    def check(some: Sequence[ReadOnce]) -> list[list[str]]:
        return [run_problems(store, run, done) for run in some]

    # Several large files are read and hashed at a time.
    with ThreadPoolExecutor(READERS) as readers:
        for first in range(0, len(runs), AT_A_TIME):
            some = [ReadOnce(run.folder) for run in runs[first : first + AT_A_TIME]]
            parts = [some[start : start + IN_A_ROW] for start in range(0, len(some), IN_A_ROW)]
            found = [problems for part in readers.map(check, parts) for problems in part]
            yield from zip(some, found, strict=True)


def run_problems(store: Store, run: Run, done: MutableMapping[str, bool] | None = None) -> list[str]:
    """The problems of one run, one sentence each.

    done: whether the runs are done whose state has been read before; this run and its parent are added.
    """
    run, done = run if isinstance(run, ReadOnce) else ReadOnce(run.folder), {} if done is None else done
    found = [*_file_problems(run)]
    spec = state = None
    try:
        spec = run.spec()
    except (DamageError, FileNotFoundError) as error:
        found.append(str(error))
    found += _probe_problems(run)
    try:
        state = run.state()
        done[run.key] = state.state == "done"
        if ADAPTED in run.entries:
            run.adapted()
        if done[run.key] and CURVES in run.entries and not ends_whole(run.folder):
            found.append(f"{run.folder / CURVES}: the last line is not complete; delete this file")
    except DamageError as error:
        found.append(str(error))
    found += _lease_problems(run)
    if spec is None or state is None or state.state != "done":
        return list(dict.fromkeys(found))
    found += _result_problems(run, state, spec)
    with contextlib.suppress(DamageError):  # a damaged parent is reported under its own key
        parent = spec["parent"]
        if parent and parent not in done:
            done[parent] = store.run(parent).is_done()
        if parent and not done[parent]:
            found.append(f"the run is done, but its parent {parent} is not; train the parent again")
    return found


def _probe_problems(run: ReadOnce) -> Iterator[str]:
    """What is wrong with the gradient probes of a run."""
    for name in sorted(fnmatch.filter(run.entries, PROBES)):
        try:
            read_probe(run.folder / name)
        except DamageError as error:
            yield str(error)


def _lease_problems(run: ReadOnce) -> Iterator[str]:
    """What is wrong with the lease of a run."""
    with contextlib.suppress(OSError):  # of the folder, which the documents say
        claims = [name for name in run.entries if name.startswith("lease.")]
        # Most runs have one claim, which is empty: the lease was released.
        released = len(claims) == 1 and not os.stat(f"{run.folder}/{claims[0]}").st_size
        if claims and not released and (claim := claim_problem(run.lease)):
            yield claim


def _result_problems(run: ReadOnce, state: State, spec: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the results of a done run."""
    cure = "delete the run's folder and train it again"
    if damage := damaged_files(run, state, spec):
        yield from (f"{what}; {cure}" for what in damage)
    elif LOSSES in spec.get("leaves", [WEIGHTS, LOSSES]):
        try:
            missing = set(spec["evaluation"]) - set(run.losses()["splits"])
        except DamageError as error:
            yield str(error)
        else:
            if missing:
                yield f"losses.json lacks the split {', '.join(sorted(missing))}; {cure}"


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


def _file_problems(run: ReadOnce) -> Iterator[str]:
    """What is wrong with the entries of a run's folder, whatever they hold."""
    for name, entry in run.entries.items():
        folder = entry.is_dir()
        if not (folder or entry.is_file()) or not os.access(entry.path, os.R_OK):
            if what := place_problem(Path(entry.path)):
                yield what
        elif name in (*FOLDERS, *FILES) and folder != (name in FOLDERS):
            yield f"{entry.path} is not a {'folder' if name in FOLDERS else 'file'}; delete it"


def _entries(folder: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.name)}
    except OSError:
        return {}


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
        path = f"{run.folder}/{name}"
        try:
            if not os.path.isfile(path):  # a named pipe would block
                found.append(f"{name} is missing, or not a file" if os.path.lexists(path) else f"{name} is missing")
            elif sha256_of(path) != checksum:
                found.append(f"{name} is damaged")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read ({os_reason(error)})")
    return found
