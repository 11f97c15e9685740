"""A study as the verbs of the command line work on it: its file, its store, its data, its tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.datamodules.corpora.prepare import Report, known_facts, prepare
from retain.results.store.runs import Store, make_store, open_store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import Tree, device_mismatch, expand


@dataclass(frozen=True)
class OpenedStudy:
    """Everything that is known of a study before anything is trained."""

    file: StudyFile
    store: Store
    facts: Facts
    tree: Tree


def open_study(name: str, overrides: Sequence[str], store: Path) -> OpenedStudy:
    """A study with what its store knows already; reads no corpus and writes nothing. Raises StudyError."""
    file = read_study(name, overrides)
    return _opened(file, open_store(store), known_facts(file, store))


def prepare_study(name: str, overrides: Sequence[str], store: Path, report: Report) -> OpenedStudy:
    """A study whose data is in its store, fetched where it was missing. Raises StudyError, MissingResourceError."""
    file = read_study(name, overrides)
    # What is wrong with the study itself is found before a corpus is read or a folder is made.
    known = _opened(file, open_store(store), known_facts(file, store))
    made = make_store(store)
    facts = prepare(file, store, report)
    return known if facts == known.facts else _opened(file, made, facts)


def prepare_cut(name: str, overrides: Sequence[str], store: Path, report: Report) -> OpenedStudy:
    """As `prepare_study`, the study cut down to seconds: on the same data, so that it need not be prepared again."""
    whole = prepare_study(name, overrides, store, report)
    file = scale_down(whole.file)
    return _opened(file, whole.store, known_facts(file, store))


def _opened(file: StudyFile, store: Store, facts: Facts) -> OpenedStudy:
    if mismatch := device_mismatch(file):
        raise StudyError(f"{file.path.name}: {mismatch}; choose a batch that they divide, or other devices")
    return OpenedStudy(file, store, facts, expand(file, facts))
