"""The folder of a study in the store, and the documents there: the loss table, predictors, looks, and what a search leaves."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from retain.results.store.runs import SPEC, Run, Store
from retain.sweeps.base.documents import parsed, read_bytes, read_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.redaction import redacted
from retain.sweeps.tree.keys import canonical, stage_key

OWNER = "study.json"
"""The study file whose results are in the folder."""
TRIALS, PREDICTORS_FILE = "trials.json", "predictors.json"
HISTORY = "search.json"
"""The points of a search, and what was found at them."""
SUMMARY = "search-summary.json"
"""What the last search printed."""
POINTS_STUDY = "search.yaml"
"""The searched points as a study."""
SUFFIX = "-points"
"""The suffix that the name of that study adds to the name of the searched study."""
AXIS_OF_POINTS = "point"
"""The axis of cases of that study."""
LOOKS = "looks.json"
"""The looks of a study whose seeds are added until its verdicts are decided; a study of a fixed sample has none."""
PREPARATION = "preparation.json"
"""The runs that prepare the data of a study, as they were last registered."""
LONGEST_NAME = 200
"""Bytes of the longest name of a folder for overrides, or for the axes of a run."""


PointState = Literal["planned", "running", "done", "pruned", "failed"]


class TrialRow(TypedDict):
    """A row of trials.json. Losses are in nats per token; None for what is not trained."""

    axes: dict[str, Any]
    keys: dict[str, str | None]
    immediate_posttraining_loss: float | None
    retained_posttraining_loss: float | None
    finetuning_loss: float | None
    retained_pretraining_loss: float | None
    tokens: int | None
    losses: NotRequired[dict[str, dict[str, float | None]]]
    """The loss of each stage's weights on each corpus, by name; absent in earlier files."""
    measures: NotRequired[dict[str, dict[str, float | None]]]
    """The metrics of each stage's weights on tasks, as TASK/METRIC; absent without tasks."""
    parameters: NotRequired[int]
    """The number of parameters of the trial's model, in a study of several models."""


class SavedTrials(TypedDict):
    """trials.json: the rows of the last run."""

    trials: list[TrialRow]


class SavedPoint(TypedDict):
    """A point of a search in its history."""

    number: int
    values: dict[str, Any]
    by: str
    state: PointState


class SavedEnd(TypedDict):
    """The end of a point in the history of its search."""

    point: str
    state: str
    tokens: int
    device_hours: float


class SavedHistory(TypedDict):
    """The content of search.json; older histories lack probes and ends."""

    identity: str
    points: list[SavedPoint]
    found: list[str]
    pruned: dict[str, str]
    rungs: dict[str, dict[str, float]]
    probes: NotRequired[dict[str, dict[str, dict[str, float]]]]
    ends: NotRequired[list[SavedEnd]]


class Spent(TypedDict):
    """What a search has spent."""

    tokens: int
    device_hours: float
    stages: int
    tokens_without_sharing: int


class SummaryPoint(TypedDict):
    """A point in the summary of a search."""

    point: str
    state: PointState
    values: dict[str, Any]
    losses: dict[str, float] | None
    reason: str | None


class SummaryLoss(TypedDict):
    """A loss of a recommended point: its mean and 95% interval over seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


class Recommended(TypedDict):
    """A recommended point."""

    point: str
    values: dict[str, Any]
    losses: dict[str, SummaryLoss]


class AxisImportance(TypedDict):
    """The importance of an axis, with its 95% interval."""

    axis: str
    mean: float
    low: float
    high: float


class SavedSummary(TypedDict):
    """The content of search-summary.json."""

    study: str
    objective: str
    maximised: NotRequired[list[str]]
    """The metrics of the objective that are maximised."""
    constraints: NotRequired[list[str]]
    points: list[SummaryPoint]
    recommended: list[Recommended]
    frontier_area: float | None
    importances: list[AxisImportance]
    spent: Spent
    budget: NotRequired[str | None]
    over_budget: NotRequired[str | None]
    ended: str


class SavedPredictors(TypedDict):
    """The content of predictors.json."""

    study: NotRequired[str]
    share: NotRequired[float]
    trials: list[dict[str, Any]]
    correlations: list[dict[str, Any]]


class SavedVerdict(TypedDict):
    """The outcome of one claim at a look."""

    claim: str
    """The claim's number, such as 1a."""
    words: str
    """The subject and the claim."""
    outcome: Literal["supported", "not supported", "undecided"]
    """The outcome; a claim that an earlier look has decided keeps its outcome."""
    look: int
    """The number of the look that the outcome is of, from 1 on: the one that decided, or this one."""


class SavedLook(TypedDict):
    """A look that was made."""

    seeds: int
    """The number of seeds."""
    level: float
    """The level of each interval at this look, which is one of 95% over all looks."""
    time: float
    """When it was made, in seconds since 1970."""
    verdicts: list[SavedVerdict]
    """The outcome of every claim."""


class SavedLooks(TypedDict):
    """The content of looks.json."""

    design: str
    """A fingerprint of the study's fields but for its seeds and resources."""
    own: list[int]
    """The seeds of the study file."""
    seeds: list[int]
    """All seeds up to the most, in the order in which they are added."""
    counts: list[int]
    """The number of seeds at each look, ascending; the last is the most."""
    block: int
    """The number of seeds that are added at a time."""
    made: list[SavedLook]
    """The looks made so far."""


def read_trials(path: Path) -> list[dict[str, Any]]:
    """The rows of a trials.json; earlier versions wrote them as a bare list. Raises FileNotFoundError, DamageError."""
    cure = "delete this file and run the study again, which writes it again"
    content = read_bytes(path, cure)
    if content.lstrip().startswith(b"["):
        rows = parsed(content, list[TrialRow], path, cure)
    else:
        rows = parsed(content, SavedTrials, path, cure)["trials"]
    return [dict(row) for row in rows]


def read_history(path: Path) -> SavedHistory:
    """The history of a search. Raises FileNotFoundError, DamageError."""
    return read_document(
        path, SavedHistory, "delete this file and search again; the search begins again, with the same stages"
    )


def read_summary(path: Path) -> SavedSummary:
    """The summary of a search. Raises FileNotFoundError, DamageError."""
    return read_document(path, SavedSummary, "delete this file and search again, which writes it again")


def read_predictors(path: Path) -> SavedPredictors:
    """The predictors of a study. Raises FileNotFoundError, DamageError."""
    return read_document(path, SavedPredictors, "delete this file and probe the study again")


class SavedPreparation(TypedDict):
    """The content of preparation.json."""

    keys: list[str]
    """The keys of the runs, those that others need first."""


def read_preparation(path: Path) -> SavedPreparation:
    """The runs that prepare the data of a study. Raises FileNotFoundError, DamageError."""
    return read_document(path, SavedPreparation, "delete this file and prepare the study's data again")


def preparation_keys(store: Store, study: str) -> list[str]:
    """The keys of the runs that last prepared the data of a study, as far as they are in the store, those needed first.

    With the parts that jobs have added since. Raises DamageError.
    """
    try:
        keys = read_preparation(study_folder(store.root, study) / PREPARATION)["keys"]
    except FileNotFoundError:
        return []
    there = [key for key in keys if (store.root / key / SPEC).exists()]
    needed = (needed for key in there for needed in (*store.run(key).needs(), key))
    return [key for key in dict.fromkeys(needed) if (store.root / key / SPEC).exists()]


def read_looks(path: Path) -> SavedLooks:
    """The looks of a study. Raises FileNotFoundError, DamageError."""
    cure = "restore it from a copy: it decides how wide the intervals of the study are"
    looks = read_document(path, SavedLooks, cure)
    counts = looks["counts"]
    if not counts or counts[-1] != len(looks["seeds"]) or not len(looks["made"]) <= len(counts):
        raise DamageError(f"{path}: counts do not agree with seeds and made; {cure}")
    return looks


def looks_of(store: Path, study: str) -> SavedLooks | None:
    """The looks of a study in a store; None for a fixed sample. Raises DamageError."""
    try:
        return read_looks(study_folder(store, study) / LOOKS)
    except FileNotFoundError:
        return None
    except DamageError as error:
        if isinstance(error.__cause__, NotADirectoryError):  # the store is no folder, which its writers tell better
            return None
        raise


def looks_ended(looks: SavedLooks) -> bool:
    """Whether no look is left to make: the last one decided every verdict, or had the most seeds."""
    made = looks["made"]
    if not made:
        return False
    return len(made) == len(looks["counts"]) or all(one["outcome"] != "undecided" for one in made[-1]["verdicts"])


def seeds_of_looks(looks: SavedLooks) -> list[int]:
    """The seeds of the looks made, and of the next one if there is one."""
    number = len(looks["made"]) - (1 if looks_ended(looks) else 0)
    return looks["seeds"][: looks["counts"][number]]


def study_folder(store: Path, study: str, overrides: Sequence[str] = ()) -> Path:
    """The folder of a study's output: its rows, table, figures, TensorBoard views and search.

    What a verb that only reads shows of the study with overrides has a folder of its own in it.
    """
    whole = store / "studies" / study
    if not overrides:
        return whole
    name = redacted(",".join(overrides)).replace("/", "_")
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > LONGEST_NAME:
        name = f"{name[:40]}.{hashlib.sha256(encoded).hexdigest()[:12]}"
    return whole / "with" / name


def folder_name(text: str) -> str:
    """A text as the beginning of a folder's name: without slashes, and no longer than a file system takes."""
    return text.replace("/", "_").encode(errors="surrogateescape")[:LONGEST_NAME].decode(errors="ignore")


def search_recipe(study: str) -> dict[str, str]:
    """What identifies the search of a study in a store: one process at a time searches it, whatever it asks for."""
    return {"study": study}


def search_run(store: Store, study: str) -> Run:
    """The run that searches a study, or the study that these are the searched points of; it may not exist."""
    return store.run(stage_key("search", None, canonical(search_recipe(study.removesuffix(SUFFIX)))))
