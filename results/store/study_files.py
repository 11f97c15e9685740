"""The folder of a study in the store, and what a search leaves there."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from retain.results.store.runs import Run, Store
from retain.sweeps.tree.keys import canonical, stage_key

HISTORY = "search.json"
"""The points of a search, and what was found at them."""
SUMMARY = "search-summary.json"
"""What the last search printed."""
POINTS_STUDY = "search.yaml"
"""The searched points as a study."""
SUFFIX = "-points"
"""The name of that study is the name of the searched study with this suffix."""
AXIS_OF_POINTS = "point"
"""Its axis of cases."""
LONGEST_NAME = 200
"""Bytes of the longest name of a folder for overrides."""


def study_folder(store: Path, study: str, overrides: Sequence[str] = ()) -> Path:
    """The folder of a study's output: its rows, table, figures, TensorBoard views and search.

    What a verb that only reads shows of the study with overrides has a folder of its own in it.
    """
    whole = store / "studies" / study
    if not overrides:
        return whole
    name = ",".join(overrides).replace("/", "_")
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name[:40]}.{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return whole / "with" / name


def search_recipe(study: str) -> dict[str, str]:
    """What identifies the search of a study in a store: one process at a time searches it, whatever it asks for."""
    return {"study": study}


def search_run(store: Store, study: str) -> Run:
    """The run that searches a study, or the study that these are the searched points of; it may not exist."""
    return store.run(stage_key("search", None, canonical(search_recipe(study.removesuffix(SUFFIX)))))
