"""Prepare a study's checkpoints: copies in the store, which no later change of their sources can change."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from retain.datamodules.corpora.checkpoints.stored import build_checkpoint, checkpoint_folder, open_checkpoint
from retain.datamodules.corpora.sources import (
    Note,
    checkpoint_source,
    checkpoints_of,
    naming_checkpoint,
    naming_tokenizer,
    read_note,
    write_note,
)
from retain.datamodules.corpora.tokenizer import Tokenizer, load_tokenizer
from retain.sweeps.base.building import new_build_folder, publish, removed_on_error
from retain.sweeps.base.errors import DamageError
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import StudyFile


def prepare_checkpoint(file: StudyFile, store: Path, model: Model, report: Callable[[str, int, int], None]) -> None:
    """Copy a checkpoint into the store unless it is there. Raises StudyError, MissingResourceError."""
    source = checkpoint_source(file, model)
    if note := read_note(store, source):
        with contextlib.suppress(DamageError):
            checkpoint_folder(store, note.fingerprint)
            return
    report(f"checkpoint {model.hf}", 0, 0)
    building = new_build_folder(store)
    with removed_on_error(building):
        with naming_checkpoint(file):
            facts, commit = build_checkpoint(model, file.folder, building)
        publish(building, store / "checkpoints" / facts.fingerprint, open_checkpoint)
    write_note(store, source, Note(facts.fingerprint, {}), commit)


def checkpoint_tokenizer(file: StudyFile, store: Path) -> Tokenizer:
    """Load the tokeniser of the study's first checkpoint, which is prepared. Raises StudyError if it cannot be used."""
    model = checkpoints_of(file)[0]
    note = read_note(store, checkpoint_source(file, model))
    assert note is not None
    folder = store / "checkpoints" / note.fingerprint
    with naming_tokenizer(file, folder):
        return load_tokenizer(folder)
