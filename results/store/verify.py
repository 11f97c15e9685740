"""Check the runs of a store: keys match their payloads, and done runs are complete and unchanged."""

import contextlib
import fnmatch
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from retain.results.store.runs import LOSSES, WEIGHTS, Run, Store, sha256_of
from retain.results.store.state import STATES, State
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.tree.keys import canonical, stage_key

RETRAIN = "delete the run's folder and train it again"
"""The cure for a damaged run."""


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
    try:
        spec, state = run.spec(), run.state()
    except MissingResourceError as error:
        return [str(error)]
    except (ValueError, KeyError, TypeError) as error:
        return [f"stage.json or state.json cannot be read ({error}); {RETRAIN}"]
    found = []
    if run.key != stage_key(spec["stage"], spec["parent"], canonical(spec["recipe"])):
        found.append(f"the recipe in stage.json hashes to another key; {RETRAIN}")
    if state.state not in STATES:
        found.append(f"state.json has the unknown state {state.state!r}")
    if state.state != "done":
        return found
    if damage := damaged_files(run, state):
        return [*found, *(f"{what}; {RETRAIN}" for what in damage)]
    leaves = spec.get("leaves", [WEIGHTS, LOSSES])
    if LOSSES in leaves and (missing := set(spec["evaluation"]) - set(run.losses()["splits"])):
        found.append(f"losses.json lacks the split {', '.join(sorted(missing))}; {RETRAIN}")
    with contextlib.suppress(MissingResourceError):  # a damaged parent is reported under its own key
        if spec["parent"] and not store.run(spec["parent"]).is_done():
            found.append(f"the run is done, but its parent {spec['parent']} is not; train the parent again")
    return found


def damaged_files(run: Run, state: State | None = None) -> list[str]:
    """The files of a done run that are missing or differ from their checksums; freed weights are not missing.

    state: the state of the run, if it has been read already.
    """
    state = state or run.state()
    checksums = state.checksums
    leaves = run.spec().get("leaves", [WEIGHTS, LOSSES])
    expected = [pattern for pattern in leaves if not (state.weights_freed and pattern == WEIGHTS)]
    if absent := [pattern for pattern in expected if not fnmatch.filter(checksums, pattern)]:
        return [f"state.json has no checksum of {absent[0]}"]
    found = []
    for name, checksum in checksums.items():
        try:
            if sha256_of(run.folder / name) != checksum:
                found.append(f"{name} is damaged")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            found.append(f"{name} is missing")
    return found
