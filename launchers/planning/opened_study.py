"""A study joined to its store: file, data and tree."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.datamodules.corpora.prepare import Report, ignore_progress, known_facts, prepare, remembered_facts
from retain.results.store.runs import Store, make_store, open_store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.scaled_down import scale_down
from retain.sweeps.tree.tree import Tree, device_mismatch, expand


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

    remember: whether to open it on the data as last prepared if its sources have changed or are gone, with a warning in the
    log; otherwise on placeholders, as `retain run` would prepare the data again.
    """
    file = read_study(name, overrides)
    facts, remarks = remembered_facts(file, store) if remember else (known_facts(file, store), [])
    for remark in remarks:
        logging.getLogger(__name__).warning("%s", remark)
    return _opened(name, file, open_store(store), facts)


def prepare_study(name: str, overrides: Sequence[str], store: Path, report: Report = ignore_progress) -> OpenedStudy:
    """Open a study, and prepare the data that its store lacks. Raises StudyError, MissingResourceError."""
    file = read_study(name, overrides)
    # Find mistakes in the study before any corpus is read or any folder is made.
    known = _opened(name, file, open_store(store), known_facts(file, store))
    make_store(store)
    facts = prepare(file, store, report)
    return known if facts == known.facts else _opened(name, file, known.store, facts)


def prepare_cut(name: str, overrides: Sequence[str], store: Path, report: Report) -> OpenedStudy:
    """`prepare_study` for a study scaled down to seconds, on the same data."""
    whole = prepare_study(name, overrides, store, report)
    file = scale_down(whole.file)
    return _opened(name, file, whole.store, known_facts(file, store))


def _opened(name: str, file: StudyFile, store: Store, facts: Facts) -> OpenedStudy:
    if mismatch := device_mismatch(file):
        raise StudyError(f"{file.path.name}: {mismatch}; choose a batch that they divide, or other devices")
    return OpenedStudy(name, file, store, facts, expand(file, facts))
