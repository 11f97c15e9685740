"""`retain verify`: checks the runs of a store, the data that they were trained on, and the tokens that they saw."""

from collections.abc import Collection
from typing import Any

from retain.datamodules.corpora.packing import packed_problem
from retain.datamodules.corpora.prepare import stored_tokenizer
from retain.datamodules.corpora.sources import damaged_notes
from retain.launchers.kinds import kind_of
from retain.results.store.runs import Store
from retain.results.store.verify import Problem, verify_runs
from retain.sweeps.base.errors import DamagedError


def verify_store(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """Check the runs of `keys` (or all) and the packed corpora. Returns the number of runs and every problem."""
    checked, problems = verify_runs(store, keys)
    folders = sorted((store.root / "corpora").glob("*"))
    problems += [Problem(f"corpora/{folder.name}", what) for folder in folders if (what := packed_problem(folder))]
    for folder in sorted((store.root / "tokenizers").glob("*")):
        try:
            stored_tokenizer(store.root, folder.name)
        except DamagedError as error:
            problems.append(Problem(f"tokenizers/{folder.name}", str(error)))
    for note in damaged_notes(store.root):
        problems.append(Problem(f"prepared/{note.name}", "the note is damaged; prepare the study's data again"))
    unreadable = {problem.where for problem in problems}
    known: dict[str, Any] = {}
    for run in store.runs():
        if (keys is None or run.key in keys) and run.key not in unreadable:
            problems += [Problem(run.key, what) for what in kind_of(run.spec()).problems(store, run, known)]
    return checked, problems
