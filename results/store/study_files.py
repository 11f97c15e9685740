"""The folder of a study in the store, and what a search leaves there."""

from pathlib import Path

from retain.results.store.runs import Run, Store
from retain.sweeps.tree.keys import canonical, stage_key

OWNER = "study.json"
"""The study file whose results are in the folder."""
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


def study_folder(store: Path, study: str) -> Path:
    """The folder of a study's output: its rows, table, figures, TensorBoard views and search, and its owner."""
    return store / "studies" / study


def search_recipe(study: str) -> dict[str, str]:
    """What identifies the search of a study in a store: one process at a time searches it, whatever it asks for."""
    return {"study": study}


def search_run(store: Store, study: str) -> Run:
    """The run that searches a study, or the study that these are the searched points of; it may not exist."""
    return store.run(stage_key("search", None, canonical(search_recipe(study.removesuffix(SUFFIX)))))
