"""What preparing data takes besides the packed corpora: disk for copies of data sets of the hub and for parts, and time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retain.datamodules.corpora.hub import is_on_hub
from retain.datamodules.corpora.parts.download import downloaded_bytes
from retain.datamodules.corpora.sources import corpus_sources
from retain.results.store.disk import check_room, used_bytes
from retain.results.store.runs import Run, Store
from retain.results.store.state import PART
from retain.results.store.study_files import preparation_keys
from retain.sweeps.base.building import remove_leftovers
from retain.sweeps.base.notices import notice
from retain.sweeps.base.units import format_bytes
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import Facts

BYTES_OF_TOKEN = 4
"""Bytes of a source in a token, until parts of it show how many they are."""


@dataclass(frozen=True)
class DataRoom:
    """What the data of a study that is not prepared takes. Sizes are estimated from those of the sources."""

    downloads: int = 0
    """Bytes of copies that are in the store until `retain gc` frees them; those that are not there are unknown."""
    parts: int = 0
    """Bytes of the parts of large corpora until `retain gc` frees them, those that are there included."""
    parts_there: int = 0
    """Bytes of the parts that are there."""
    packed: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each packed corpus that is not prepared, by its provisional fingerprint."""
    tokens: int = 0
    """Tokens to read and encode."""
    measured: tuple[str, ...] = ()
    """The corpora whose bytes per token are those of their prepared parts; BYTES_OF_TOKEN are assumed of the others."""
    notes: tuple[str, ...] = ()
    """One sentence for each corpus whose size is unknown."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the source of each corpus that is not prepared, by name, where they are known."""

    @property
    def needed(self) -> int:
        """Bytes that preparing the data still writes before it frees any."""
        return max(0, self.parts - self.parts_there) + sum(self.packed.values())


def data_room(name: str, file: StudyFile, facts: Facts, store: Store) -> DataRoom:
    """What the corpora of a study need that are not prepared. Reads no corpus. Raises StudyError, DamageError."""
    lacking = {name for (name, _), one in facts.corpora.items() if not one.prepared}
    if not lacking:
        return DataRoom()
    from retain.datamodules.corpora.parts.stored import is_part  # imports numpy, which prepared data does not need

    sources = corpus_sources(file)
    downloads = parts = tokens = 0
    packed: dict[str, int] = {}
    sizes: dict[str, int] = {}
    notes = []
    runs = [run for key in preparation_keys(store, file.study.study) if is_part((run := store.run(key)).folder / PART)]
    measured = {name: bytes_ for name in lacking if (bytes_ := _measured_bytes(runs, name, facts.tokenizer))}
    for corpus_name in sorted(lacking):
        corpus = file.study.corpora[corpus_name]
        files = [bytes_ for _, bytes_, _ in sources[corpus_name].get("files", ())]
        size = sum(bytes_ or 0 for bytes_ in files)
        if is_on_hub(corpus, file.folder):
            copied = downloaded_bytes(corpus, store.root)
            downloads += copied or 0
            size = copied or 0
            if copied is None:
                notes.append(
                    f"{name}: corpora.{corpus_name}: the size of {corpus.hf} on the hub is unknown, so a copy of it counts as 0"
                )
        if size and None not in files:
            sizes[corpus_name] = size
        read = int(size / measured.get(corpus_name, BYTES_OF_TOKEN))
        wanted = min(read or corpus.tokens or 0, corpus.tokens or read)
        written, masked = wanted * bytes_of_token(facts), wanted if corpus.responses_only else 0
        for (other, _), one in facts.corpora.items():
            if other == corpus_name and not one.prepared:
                packed[one.fingerprint] = written + masked // 8
        tokens += wanted
        if size > file.study.execution.data.part:
            parts += written + masked
    there = sum(used_bytes(run.folder / PART) for run in runs) if parts else 0
    return DataRoom(downloads, parts, there, packed, tokens, tuple(sorted(measured)), tuple(notes), sizes)


def _measured_bytes(runs: Sequence[Run], corpus: str, tokenizer: str) -> float | None:
    """The bytes of a corpus's source in a token, in the parts of it that are prepared; None without one of known size."""
    from retain.datamodules.corpora.parts.stored import open_part  # as above

    bytes_ = tokens = 0
    for run in runs:
        spec = run.spec()
        if spec["axes"]["corpus"] == corpus and spec["tokenizer"] == tokenizer:
            bytes_ += spec["tokens"] * BYTES_OF_TOKEN  # as they were estimated before the part was read
            tokens += open_part(run.folder / PART).manifest["tokens"]
    return bytes_ / tokens if bytes_ and tokens else None


def bytes_of_token(facts: Facts) -> int:
    """The bytes that a token takes on disk."""
    return 2 if facts.vocabulary <= 2**16 else 4


def check_data_room(name: str, file: StudyFile, facts: Facts, store: Path) -> None:
    """Say what disk it takes to prepare large corpora, and check that the data of a study will fit. Raises NoRoomError.

    What killed processes had half prepared is removed first, as its preparation would do it.
    """
    if facts.prepared:
        return
    remove_leftovers(store)
    room = data_room(name, file, facts, Store(store))
    if room.parts:
        notice(
            f"{name}: preparing the data writes about {format_bytes(room.parts)} of parts, which retain gc frees later, and "
            f"{format_bytes(sum(room.packed.values()))} of packed corpora"
        )
    check_room(store, room.needed, "to prepare the data, about ")
