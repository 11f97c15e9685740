"""What a search leaves in its study's folder of the store, by name."""

from pathlib import Path

from retain.results.store.loss_table import study_folder

HISTORY = "search.json"
"""Its points and what was found at them."""
SUMMARY = "search-summary.json"
"""What the last search printed."""
POINTS_STUDY = "search.yaml"
"""The searched points as a study."""
SUFFIX = "-points"
"""What that study is called, behind the name of the one that was searched."""
AXIS_OF_POINTS = "point"
"""Its axis of cases."""
CURVES = "search-curves"
"""A folder with the event file of the search's own curves."""


def curves_folder(store: Path, study: str) -> Path:
    """Where the curves of a study's search lie, if there are any; of the study of its points too."""
    return study_folder(store, study.removesuffix(SUFFIX)) / CURVES
