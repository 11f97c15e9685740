"""What comes out: the store of runs, the loss tables, figures. `retain.results.load(study)` gives a pandas frame."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


def load(study: str, store: str = "runs") -> "pandas.DataFrame":
    """One row per trial of a study last planned or run in this store: its axes, the four losses (nats per token), the
    tokens trained along its path, and the keys of its stages. Losses that are not there yet are NaN.

    Raises FileNotFoundError where the store knows no such study.
    """
    from pathlib import Path

    from retain.results.store.loss_table import frame_of, read_rows

    return frame_of(read_rows(Path(store), study))
