"""A study joined to its store: file, data and tree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.datamodules.corpora.known import KnownSources, known_facts, remembered_facts
from retain.datamodules.corpora.reading.report import Report, ignore_progress
from retain.launchers.planning.data_room import check_data_room
from retain.launchers.planning.looks import with_recorded_seeds
from retain.results.store.runs import Store, make_store, open_store
from retain.results.store.study_files import OWNER, study_folder
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, NewerFormatError, StudyError
from retain.sweeps.base.extras import require_extra
from retain.sweeps.base.notices import notice
from retain.sweeps.base.yaml_text import read_yaml
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.evaluation_runs import check_objective
from retain.sweeps.tree.recipes.devices import device_mismatch
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import Tree, expand

if TYPE_CHECKING:
    from retain.datamodules.corpora.prepare import InParts

EXTRAS = ("wandb", "trackio")
"""Loggers that need a package, which an extra of the same name installs."""


@dataclass(frozen=True)
class OpenedStudy:
    """Everything that is known of a study before training."""

    name: str
    """As the user named it: a study of Retain, or the path of a file."""
    file: StudyFile
    store: Store
    facts: Facts
    tree: Tree


def open_study(name: str, overrides: Sequence[str], store: Path, remember: bool = True) -> OpenedStudy:
    """Open a study with what its store already has; reads no corpus and writes nothing. Raises StudyError.

    remember: whether to open it as the store has it: with the seeds that its looks have added, and on the data as last prepared
    if its sources have changed or are gone, which is said on standard error. Otherwise with the seeds of the file, and on
    placeholders, as `retain run` would prepare the data again.
    """
    file = read_study(name, overrides)
    opened = open_store(store)  # before anything below it is read, so that a file in its place is said to be one
    if not remember:
        return _opened(name, file, opened, facts_now(file, store))
    file = with_recorded_seeds(file, store)
    facts, remarks = remembered_facts(file, store)
    for remark in remarks:
        notice(remark)
    return _opened(name, file, opened, facts)


def facts_now(file: StudyFile, store: Path) -> Facts:
    """`known_facts`, with its remarks on standard error."""
    sources = KnownSources(file, store)
    facts = known_facts(file, store, sources)
    for remark in sources.remarks.values():
        notice(remark)
    return facts


def prepare_study(
    name: str,
    overrides: Sequence[str],
    store: Path,
    report: Report = ignore_progress,
    in_parts: "InParts | None" = None,
) -> OpenedStudy:
    """Open a study, with the seeds that its looks have added, and prepare the data that its store lacks.

    in_parts: prepares large corpora; see `datamodules.corpora.prepare`. Raises StudyError, MissingResourceError.
    """
    return prepare_file(name, with_recorded_seeds(read_study(name, overrides), store), store, report, in_parts)


def prepare_file(
    name: str, file: StudyFile, store: Path, report: Report = ignore_progress, in_parts: "InParts | None" = None
) -> OpenedStudy:
    """`prepare_study` for a study that has been read already."""
    from retain.datamodules.corpora.prepare import prepare  # imports numpy, which verbs that only read do not need

    # Find mistakes in the study before any corpus is read or any folder is made.
    check_loggers(file)
    known = _opened(name, file, open_store(store), facts_now(file, store))
    check_data_room(name, file, known.facts, store)
    make_store(store)
    claim_name(file, store)
    facts = prepare(file, store, report, in_parts)
    return known if facts == known.facts else _opened(name, file, known.store, facts)


def prepare_cut(name: str, overrides: Sequence[str], store: Path, report: Report) -> OpenedStudy:
    """`prepare_study` for a study scaled down to seconds, on the same data."""
    whole = prepare_study(name, overrides, store, report)
    file = scale_down(whole.file)
    return _opened(name, file, whole.store, known_facts(file, store))


def check_loggers(file: StudyFile) -> None:
    """Raise MissingResourceError if a logger of `execution.log` is not installed."""
    execution = file.study.execution
    for name in (name for stage in file.study.stages for name in execution.of_stage(stage).log):
        if name in EXTRAS:
            require_extra(name, (name,), f"{file.path.name}: execution.log", "remove it from log")


@dataclass(frozen=True)
class Owner:
    """The content of study.json: the study file whose results are in the folder."""

    path: str
    name: str


def claim_name(file: StudyFile, store: Path) -> None:
    """Enter a study file as the owner of its study's name in a store, after `check_name`."""
    place = study_folder(store, file.study.study) / OWNER
    owner = Owner(str(file.path), str(_content(file.path).get("study")))
    try:
        known = read_owner(place)
    except (FileNotFoundError, DamageError):  # `check_name` has said what is damaged
        known = None
    if known != owner:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_document(place, asdict(owner))


def check_name(file: StudyFile, store: Path) -> None:
    """Raise StudyError if another study, whose file is still there, has this study's name in a store.

    Studies of one name would replace each other's table, figures and search. A copy of a file is the same study, and so is a
    file that was edited or moved.
    """
    name = file.study.study
    owner = _known_owner(study_folder(store, name) / OWNER)
    if owner is None or owner.path == str(file.path):
        return
    theirs, ours = _content(Path(owner.path)), _content(file.path)
    if theirs and theirs.get("study") == owner.name and theirs != ours:
        raise StudyError(
            f"{file.path.name}: study: another study named {name}, {owner.path}, has its results in {store}; give this "
            "one another name, as in study=NAME, or another --store"
        )


def read_owner(place: Path) -> Owner:
    """The content of a study.json. Raises FileNotFoundError, DamageError."""
    return read_document(place, Owner, "delete this file")


def _known_owner(place: Path) -> Owner | None:
    """The owner of a name; None if there is none, or its file is damaged, which a notice says. Raises NewerFormatError."""
    try:
        return read_owner(place)
    except FileNotFoundError:
        return None
    except NewerFormatError:
        raise
    except DamageError as error:
        notice(str(error))
        return None


def _content(path: Path) -> dict[str, Any]:
    """The fields of a study file but for its resources; empty if the file is gone or invalid."""
    try:
        fields = read_yaml(path)
    except StudyError:
        return {}
    return {name: part for name, part in fields.items() if name != "execution"} if isinstance(fields, dict) else {}


def _opened(name: str, file: StudyFile, store: Store, facts: Facts) -> OpenedStudy:
    check_name(file, store.root)
    if mismatch := device_mismatch(file):
        raise StudyError(f"{file.path.name}: {mismatch}")
    tree = expand(file, facts)
    check_objective(file, tree)
    return OpenedStudy(name, file, store, facts, tree)
