"""`retain verify`: the runs of a store, and the data that they were trained on."""

from collections.abc import Collection

from datamodules.packing import packed_problem
from results.store import Store
from results.verify import Problem, verify_runs


def verify_store(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """How many runs were checked (those of `keys`, or all), and every problem of these and of the packed corpora."""
    checked, problems = verify_runs(store, keys)
    folders = sorted((store.root / "corpora").glob("*"))
    found = [Problem(f"corpora/{folder.name}", what) for folder in folders if (what := packed_problem(folder))]
    return checked, problems + found
