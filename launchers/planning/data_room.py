"""The disk that preparing data takes besides the packed corpora: copies of data sets of the hub, and parts."""

from dataclasses import dataclass

from retain.datamodules.corpora.hub import is_on_hub
from retain.datamodules.corpora.parts.download import downloaded_bytes
from retain.datamodules.corpora.sources import corpus_sources
from retain.launchers.planning.opened_study import OpenedStudy

BYTES_OF_TOKEN = 4
"""Bytes of text in a token, for the size of a part before it is read."""


@dataclass(frozen=True)
class DataRoom:
    """What the data of a study that is not prepared takes until `retain gc` frees it."""

    downloads: int = 0
    """Bytes of copies that are in the store; those that are not are unknown."""
    parts: int = 0
    """Bytes of the parts of large corpora."""
    notes: tuple[str, ...] = ()
    """One sentence for each corpus whose size is unknown."""


def data_room(opened: OpenedStudy) -> DataRoom:
    """The room that the corpora of a study need that are not prepared. Reads no corpus. Raises StudyError."""
    file, facts = opened.file, opened.facts
    lacking = {name for (name, _), one in facts.corpora.items() if not one.prepared}
    sources = corpus_sources(file) if lacking else {}
    bytes_per_token = 2 if facts.vocabulary <= 2**16 else 4
    downloads = parts = 0
    notes = []
    for name in sorted(lacking):
        corpus = file.study.corpora[name]
        size = sum(bytes_ for _, bytes_, _ in sources[name].get("files", ()))
        if is_on_hub(corpus, file.folder):
            copied = downloaded_bytes(corpus, opened.store.root)
            downloads += copied or 0
            size = copied or 0
            if copied is None:
                notes.append(
                    f"{opened.name}: corpora.{name}: the size of {corpus.hf} on the hub is unknown, so a copy of it counts as 0"
                )
        if size > file.study.execution.data.part:
            tokens = size // BYTES_OF_TOKEN
            parts += min(tokens, corpus.tokens or tokens) * bytes_per_token
    return DataRoom(downloads, parts, tuple(notes))
