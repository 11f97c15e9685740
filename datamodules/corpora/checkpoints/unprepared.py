"""What local checkpoints and tokenisers say of themselves before they are prepared, so that a plan finds what is wrong.

Only small files are read: config.json and the tokeniser's. The weights are checked when they are prepared, and their headers
when the checkpoint is found.
"""

from typing import Any

from retain.datamodules.corpora.checkpoints.files import local_checkpoint, read_config
from retain.datamodules.corpora.find import local_folder
from retain.datamodules.corpora.responses.chat import find_chat_template
from retain.datamodules.corpora.sources import naming_checkpoint, naming_corpus, naming_tokenizer, tokenizer_settings
from retain.datamodules.corpora.tokenizer import load_tokenizer
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import StudyFile


def unprepared_checkpoint(file: StudyFile, model: Model) -> dict[str, Any]:
    """Return the fields of `CheckpointFacts` that a local folder shows; of a checkpoint on the hub none. Raises StudyError."""
    with naming_checkpoint(file):
        place = local_checkpoint(model, file.folder)
        if place is None:
            return {}
        from retain.datamodules.corpora.checkpoints.model import inspect  # imports torch, which other plans do not need

        family, _ = read_config(place)
        vocabulary, context, counts = inspect(place, family, fresh=True)
    return {"family": family, "vocabulary": vocabulary, "context": context, "counts": counts}


def unprepared_vocabulary(file: StudyFile, check: bool) -> int:
    """Return the number of entries of a study's unprepared tokeniser; 0 if it is not known yet.

    check: whether to read a local tokeniser, and raise StudyError if it cannot be used, or lacks the chat template that a
    corpus needs.
    """
    settings = tokenizer_settings(file)
    place = local_folder(settings.hf, file.folder, "tokenizer.hf: ") if check and settings.hf is not None else None
    if place is None:
        return settings.train or 0
    with naming_tokenizer(file):
        entries = load_tokenizer(place).vocabulary
    for name, corpus in file.study.corpora.items():
        if corpus.has_conversations:
            with naming_corpus(file, name):
                find_chat_template(settings, file.folder)
    return entries
