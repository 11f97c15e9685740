import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from retain.launchers.kinds import ASSEMBLE, EVALUATE, FISHER, LINEAR, PREPARE, REFERENCE, TRAINING
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.data_facts import Facts
from tests.retain import retain_here
from tests.studies import tiny_study

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
# Otherwise the server of worker processes is replaced, and imports torch again, with every kind of run that is new to it.
KINDS = (TRAINING, LINEAR, EVALUATE, FISHER, REFERENCE, PREPARE, ASSEMBLE)
multiprocessing.get_context("forkserver").set_forkserver_preload([kind.module for kind in KINDS])


@pytest.fixture(scope="module", autouse=True)
def restored_environment() -> Iterator[None]:
    """Attempts set variables of their process, such as those of offline libraries; the tests of other files start without."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Prepared:
    """A study whose corpora are in a store."""

    file: StudyFile
    store: Path
    facts: Facts


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The tiny study, its data prepared once for all tests: read it, do not write into it."""
    from retain.datamodules.corpora.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    file = read_study(str(tiny_study(folder / "study")))
    return Prepared(file, folder / "store", prepare(file, folder / "store"))


@dataclass(frozen=True)
class Trained:
    """The tiny study, trained by `retain run`: its file, its store, and what the command printed."""

    study: Path
    store: Path
    output: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained once for all tests: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    study = tiny_study(folder / "study")
    return Trained(study, folder / "runs", retain_here("run", study, "--store", folder / "runs"))
