"""Whether the store's runs are what they say: keys match their payloads, done runs are complete and unchanged."""

import contextlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from retain.results.store.runs import STATES, Run, State, Store, sha256_of
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.tree.keys import canonical, stage_key


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, and what with its cure."""

    where: str
    what: str


def verify_runs(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """How many runs were checked (those of `keys`, or all), and every problem found."""
    runs = [run for run in store.runs() if keys is None or run.key in keys]
    # Hashing large files, and waiting for them, goes on side by side.
    with ThreadPoolExecutor(os.cpu_count()) as readers:
        found = list(readers.map(lambda run: run_problems(store, run), runs))
    return len(runs), [Problem(run.key, what) for run, problems in zip(runs, found, strict=True) for what in problems]


def run_problems(store: Store, run: Run) -> list[str]:
    """What is wrong with one run, a sentence each."""
    try:
        spec, state = run.spec(), run.state()
    except MissingResourceError as error:
        return [str(error)]
    except (ValueError, KeyError, TypeError) as error:
        return [f"stage.json or state.json cannot be read ({error}); delete the run's folder and train it again"]
    found = []
    if run.key != stage_key(spec["stage"], spec["parent"], canonical(spec["recipe"])):
        found.append("its recipe in stage.json hashes to another key; delete the run's folder and train it again")
    if state.state not in STATES:
        found.append(f"state.json says {state.state!r}, which is no state")
    if state.state != "done":
        return found
    if damage := damaged_files(run, state):
        return [*found, *(f"{what}; delete the run's folder and train it again" for what in damage)]
    if missing := set(spec["evaluation"]) - set(run.losses()["splits"]):
        found.append(
            f"losses.json lacks the split {', '.join(sorted(missing))}; delete the run's folder and train it again"
        )
    with contextlib.suppress(MissingResourceError):  # a damaged parent is told under its own key
        if spec["parent"] and not store.run(spec["parent"]).is_done():
            found.append(f"it is done, but its parent {spec['parent']} is not; train the parent again")
    return found


def damaged_files(run: Run, state: State | None = None) -> list[str]:
    """The files of a done run that are missing or differ from their checksums; freed weights are not missed.

    state: the run's, where it has been read already.
    """
    state = state or run.state()
    checksums = state.checksums
    if (
        "losses.json" not in checksums
        or any(name.endswith(".safetensors") for name in checksums) == state.weights_freed
    ):
        return ["state.json does not name the checksums of its weights and losses"]
    found = []
    for name, checksum in checksums.items():
        try:
            if sha256_of(run.folder / name) != checksum:
                found.append(f"{name} is damaged")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            found.append(f"{name} is missing")
    return found
