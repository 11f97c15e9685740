"""What a store knows of a study's data, without reading a corpus: the facts of what is prepared, placeholders for the rest.

Every verb begins here, so this file and what it imports load no numpy, no tokenizers and no client of HTTP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.checkpoints.stored import open_checkpoint
from retain.datamodules.corpora.checkpoints.unprepared import unprepared_checkpoint, unprepared_vocabulary
from retain.datamodules.corpora.prepared import SPLITS, packed_corpus, stored_vocabulary
from retain.datamodules.corpora.reading.answers import keep_answer, kept_answer, without_urls
from retain.datamodules.corpora.reading.unreachable import ServerUnreachableError
from retain.datamodules.corpora.sources import (
    Note,
    ReadSource,
    Source,
    answer_path,
    checkpoint_definition,
    checkpoint_source,
    checkpoints_of,
    corpus_definition,
    corpus_source,
    digest,
    note_path,
    note_problem,
    read_note,
    read_source,
    tokenizer_definition,
    tokenizer_source,
)
from retain.datamodules.corpora.tasks.prepare import task_facts
from retain.datamodules.corpora.values.labels import known_values
from retain.sweeps.base.errors import DamageError, RetainError
from retain.sweeps.base.notices import notice
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import UNPREPARED, CheckpointFacts, CorpusFacts, Facts, checkpoint_of

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class KnownSources:
    """The sources of a study's corpora, each read once; while a server cannot be asked, as its data was last prepared."""

    file: StudyFile
    store: Path
    found: dict[str, Source] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    """What to tell the user of corpora whose servers could not be asked."""
    failures: list[ServerUnreachableError] = field(default_factory=list)

    def read(self, file: StudyFile, name: str) -> Source:
        """As `read_source`."""
        if name not in self.found:
            self.found[name] = self._read(file, name)
        return self.found[name]

    def _read(self, file: StudyFile, name: str) -> Source:
        try:
            return read_source(file, name)
        except ServerUnreachableError as error:
            answer = kept_answer(answer_path(file, name, self.store))
            # What can be found without the server must be as it was.
            if answer is None or without_urls(answer.source) != without_urls(read_source(file, name, remote=False)):
                raise
            self.failures.append(error)
            said = str(error).rpartition("; ")[0]
            self.remarks[name] = f"{said}; using its data as prepared on {answer.day}"
            return answer.source

    def keep(self, facts: Facts) -> None:
        """Note the sources of those corpora that are prepared, at every sequence length."""
        lacking = {name for (name, _), one in facts.corpora.items() if not one.prepared}
        for name, source in self.found.items():
            if name not in {*self.remarks, *lacking}:
                keep_answer(answer_path(self.file, name, self.store), source)


def known_facts(file: StudyFile, store: Path, sources: KnownSources | None = None) -> Facts:
    """Return the facts of data that is prepared, and placeholders for unprepared data, without reading a corpus.

    The facts of a study without corpora are empty. While the server of a URL cannot be asked, its files count as unchanged,
    which `sources` gets remarks on, if what is made of them is prepared. Raises StudyError, MissingResourceError
    if a source is not found.
    """
    sources = sources or KnownSources(file, store)
    facts = _facts(file, store, None, sources.read)
    if not all(one.prepared for (name, _), one in facts.corpora.items() if name in sources.remarks):
        raise sources.failures[0]
    return facts


def remembered_facts(file: StudyFile, store: Path) -> tuple[Facts, list[str]]:
    """Return the facts of the data as the study was last prepared, and how it differs from what the study names now.

    For readers of what is trained: its sources may have changed or be gone, and so may the packed data. Raises as
    `known_facts` does if a source is not found and the store knows nothing of it.
    """
    remarks: dict[str, str] = {}
    facts = _facts(file, store, remarks, read_source)
    unprepared = dict.fromkeys("model.hf" for one in facts.checkpoints.values() if not one.prepared)
    unprepared |= dict.fromkeys(f"corpora.{name}" for (name, _), one in facts.corpora.items() if not one.prepared)
    if unprepared:
        missing = f"{', '.join(unprepared)} {'is' if len(unprepared) == 1 else 'are'} not prepared in {store}"
        cure = "prepare the study's data"
        if not store.exists():
            missing, cure = f"store {store} not found", "name another with --store, or run the study"
        return facts, [
            f"{file.path.name}: {missing}, so stage keys are provisional, and trained stages are not found; {cure}"
        ]
    if len(remarks) > 1:
        remarks.pop(TOKENIZER, None)  # it was trained on the corpora that have changed
    unlabelled = dict.fromkeys(f"corpora.{name}.by" for name, _ in without_values(file, facts))
    return facts, [
        *(f"{remark}; showing stages that were trained on the data as last prepared" for remark in remarks.values()),
        *(
            f"{file.path.name}: {field}: the values are not prepared in {store}; prepare the study's data to get losses "
            "by value"
            for field in unlabelled
        ),
    ]


def _facts(file: StudyFile, store: Path, remarks: dict[str, str] | None, read: ReadSource) -> Facts:
    """The facts of a study's data; `remarks` collects how it differs from its sources, by source; see `_look_up`."""
    if not file.study.corpora:
        return Facts("", 0, {})

    def read_tokenizer(fingerprint: str) -> dict[str, int]:
        return {"vocabulary": stored_vocabulary(store, fingerprint)}

    def read_corpus(fingerprint: str) -> dict[str, int]:
        packed = packed_corpus(store, fingerprint)
        return {split: packed.count(split) for split in SPLITS}

    def read_checkpoint(fingerprint: str) -> dict[str, Any]:
        return vars(open_checkpoint(store / "checkpoints" / fingerprint))

    def remark(source: str, problem: str) -> None:
        assert remarks is not None
        where = f"{file.path.name}: {source}"
        remarks[source] = problem if problem.startswith(where) else f"{where}: {problem}"

    noted = None if remarks is None else remark
    checkpoints = {}
    for model in checkpoints_of(file):
        source, definition = partial(checkpoint_source, file, model), checkpoint_definition(file, model)
        fingerprint, found = _look_up(store, "model.hf", source, definition, read_checkpoint, noted)
        if not found:
            found = {"fingerprint": fingerprint} | ({} if noted else unprepared_checkpoint(file, model))
        checkpoints[checkpoint_of(model)] = CheckpointFacts(**found)
    tokenizer, vocabulary = _look_up(
        store, TOKENIZER, lambda: tokenizer_source(file, read), tokenizer_definition(file), read_tokenizer, noted
    )
    corpora, plain = {}, tokenizer.removeprefix(UNPREPARED)
    for name, length in packings(file):
        fingerprint, counts = _look_up(
            store,
            f"corpora.{name}",
            partial(corpus_source, file, name, length, plain, read),
            corpus_definition(file, name, length),
            read_corpus,
            noted if vocabulary else None,
        )
        values = (
            known_values(file, store, name, length, plain, fingerprint, noted is not None, read) if counts else None
        )
        corpora[name, length] = CorpusFacts(fingerprint, **counts or {}, values=values)
    entries = vocabulary["vocabulary"] if vocabulary else unprepared_vocabulary(file, check=not noted)
    return Facts(tokenizer, entries, corpora, checkpoints, task_facts(file, store, noted))


def _look_up(
    store: Path,
    what: str,
    source: Callable[[], Source],
    definition: Source,
    read: Callable[[str], dict[str, Any]],
    remark: Callable[[str, str], None] | None,
) -> tuple[str, Mapping[str, Any] | None]:
    """Return the fingerprint that a source was prepared to, with its facts; a placeholder and None if it is unprepared.

    read: reads the facts of prepared data. remark: called if the source has changed or is gone, or the data is damaged, and
    what its definition was last prepared to is returned instead; None to return only what is there and up to date.
    """
    notes: list[tuple[Note | None, str]] = []
    try:
        now = source()
        notes.append((read_note(store, now), ""))
        damage = note_problem(note_path(store, now))
        problem = damage or "the source has changed since its data was prepared"
        if damage and remark is None:
            notice(damage)
    except RetainError as error:
        if remark is None or read_note(store, definition) is None:
            raise
        now, problem = definition, str(error)
    if remark is not None:
        notes.append((read_note(store, definition), problem))
    for note, problem in notes:
        if note is not None:
            facts: Mapping[str, Any] = note.facts
            try:
                facts = read(note.fingerprint)
            except DamageError as error:
                if remark is None or not facts:  # without facts, the data counts as unprepared
                    notice(str(error))
                    break
                problem = problem or str(error)
            if facts:
                if problem and remark is not None:
                    remark(what, problem)
                return note.fingerprint, {**facts, **({"reading": note.reading} if note.reading else {})}
    return UNPREPARED + digest(now), None


def without_values(file: StudyFile, facts: Facts) -> list[tuple[str, int]]:
    """The corpora with `by` whose values are not prepared, by name and sequence length."""
    return [place for place, one in facts.corpora.items() if file.study.corpora[place[0]].by and one.values is None]


def packings(file: StudyFile) -> list[tuple[str, int]]:
    """Each corpus at every sequence length of the study's grid."""
    return [(name, length) for name in file.study.corpora for length in file.values("sequence_length")]
