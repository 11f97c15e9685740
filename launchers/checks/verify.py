"""`retain verify`: checks the runs of a store, the data that they were trained on, and every other document there."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.checkpoints.stored import checkpoint_problem
from retain.datamodules.corpora.prepared import packed_problem, tokenizer_problem
from retain.datamodules.corpora.sources import note_problem
from retain.datamodules.corpora.values.labels import labels_problem
from retain.launchers.jobs.submissions import BACKLOG, INTENT, read_backlog, read_submission
from retain.launchers.kinds import kind_of
from retain.launchers.planning import opened_study
from retain.launchers.stage import on_end
from retain.launchers.stage.training.numerics import FILE as NUMERICS
from retain.launchers.stage.training.numerics import recorded_numerics
from retain.results.store import study_files
from retain.results.store.lease import claim_problem
from retain.results.store.runs import Run, Store
from retain.results.store.verify import Problem, ReadOnce, checked_runs, chosen_runs, place_problem
from retain.sweeps.base.documents import unreadable
from retain.sweeps.base.errors import RetainError
from retain.sweeps.base.processes.shared_work import shared_out
from retain.sweeps.tree.overlap import read_overlap_file

OF_STUDIES: Mapping[str, Callable[[Path], Any]] = {
    study_files.OWNER: opened_study.read_owner,
    study_files.TRIALS: study_files.read_trials,
    study_files.PREDICTORS_FILE: study_files.read_predictors,
    study_files.HISTORY: study_files.read_history,
    study_files.SUMMARY: study_files.read_summary,
    study_files.LOOKS: study_files.read_looks,
    study_files.PREPARATION: study_files.read_preparation,
    f"{on_end.FOLDER}/{on_end.LAUNCH}": on_end.read_launch,
}
"""The reader of each document in the folder of a study."""
FOLDERS_OF_STUDIES = ("figures", "tensorboard", "with", on_end.FOLDER)
FILES_OF_STUDIES = (".csv", ".html", ".log", ".png", ".svg", ".yaml")
"""What must be a folder, or a file by its suffix, in the folder of a study; documents are checked when they are read."""
WORTH_A_PROCESS = 250
"""The number of runs that takes longer to check than a process to start."""


def verify_store(store: Store, keys: Collection[str] | None) -> tuple[int, list[Problem]]:
    """Check the runs of `keys` (or all), and everything beside the runs. Returns the number of runs and every problem."""
    runs = chosen_runs(store, keys)
    parts = shared_out(partial(_checked, store), runs, WORTH_A_PROCESS)
    read, computed = ([problem for part in parts for problem in part[kind]] for kind in range(2))
    return len(runs), [*read, *_beside_runs(store), *computed]


def _checked(store: Store, runs: Sequence[Run]) -> tuple[list[Problem], list[Problem]]:
    """The problems in the files of these runs, and in what those without such problems have computed."""
    problems, computed, known = list[Problem](), list[Problem](), dict[str, Any]()
    for run, found in checked_runs(store, runs):
        problems += [Problem(run.key, what) for what in found]
        if not found:
            computed += [Problem(run.key, what) for what in _computed_problems(store, run, known)]
    return problems, computed


def _computed_problems(store: Store, run: ReadOnce, known: dict[str, Any]) -> list[str]:
    """The problems in what a run has computed, and in how."""
    try:
        if NUMERICS in run.entries:
            recorded_numerics(run)
        return kind_of(run.spec()).problems(store, run, known)
    except RetainError as error:
        return [str(error)]


def _beside_runs(store: Store) -> Iterator[Problem]:
    """The problems of prepared data, submissions, studies and caches."""
    checks: Mapping[str, Callable[[Path], str | None]] = {
        "corpora": packed_problem,
        "checkpoints": checkpoint_problem,
        "tokenizers": tokenizer_problem,
        "values": labels_problem,
        "overlap": lambda path: _reading(read_overlap_file, path),
        "prepared": note_problem,
        "submissions": lambda path: _submission_problem(store, path),
        "studies": _study_problem,
        "cache/micro-batch": lambda path: _reading(_read_micro_batch, path),
    }
    for name, check in checks.items():
        folder = store.root / name
        try:
            entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
        except OSError as error:
            if os.path.lexists(folder):
                yield Problem(name, str(unreadable(folder, error, "delete it")))
            continue
        for entry in entries:
            if what := place_problem(folder / entry) or check(folder / entry):
                yield Problem(f"{name}/{entry}", what)


def _submission_problem(store: Store, path: Path) -> str | None:
    if path.name == BACKLOG:
        return _reading(lambda path: read_backlog(store), path)
    if path.name.startswith("lease."):
        return claim_problem(path.with_name("lease.json"))
    # A submission that SLURM did not know has no record any more.
    return _reading(lambda path: read_submission(store, path.parent.name), path / INTENT) if path.is_dir() else None


def _study_problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"{folder} is not a folder; delete it"
    places = (place_problem(path) or _wrong_place(path) for path in sorted(folder.iterdir()))
    documents = (_reading(read, folder / name) for name, read in OF_STUDIES.items())
    return "; ".join(dict.fromkeys(what for what in (*places, *documents) if what)) or None


def _wrong_place(path: Path) -> str | None:
    is_folder = path.is_dir()
    if is_folder and path.suffix in FILES_OF_STUDIES:
        return f"{path} is not a file; delete it"
    return f"{path} is not a folder; delete it" if path.name in FOLDERS_OF_STUDIES and not is_folder else None


def _reading(read: Callable[[Path], Any], path: Path) -> str | None:
    """What is wrong with a document; None if there is none."""
    try:
        read(path)
    except FileNotFoundError:
        return None
    except RetainError as error:
        return str(error)
    return None


def _read_micro_batch(path: Path) -> Any:
    from retain.launchers.stage.training.micro_batch import read_answer  # imports torch

    return read_answer(path)
