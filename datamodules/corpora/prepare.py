"""Prepare a study's corpora: packed data in the store, made once per (corpus, tokeniser, sequence length).

    <store>/tokenizers/<fingerprint>/   tokenizer.json, tokenizer_config.json
    <store>/corpora/<fingerprint>/      train.bin, heldout.bin, manifest.json
    <store>/checkpoints/<fingerprint>/  the checkpoint that a model starts from, checkpoint.json
    <store>/tasks/<id>/                 a task of `evaluate`, see `tasks.prepare`
    <store>/prepared/<digest>.json      the fingerprint that a source was prepared to, and the commit it was read at
    <store>/prepared/asked/             what servers said of the files of a corpus, see `reading.answers`
    <store>/prepared/last/              the fingerprint that a study's definition of a source was last prepared to
    <store>/building/<process>-<id>/    data that a process is preparing

Data is built under building/ and renamed into place, so two processes may prepare the same corpus at once: the first to
finish publishes it, the second discards its identical copy. Folders of killed processes are removed by the next process.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from retain.datamodules.corpora.checkpoints.prepare import checkpoint_tokenizer, prepare_checkpoint
from retain.datamodules.corpora.hub import is_on_hub
from retain.datamodules.corpora.known import TOKENIZER, KnownSources, known_facts, packings, without_values
from retain.datamodules.corpora.near.filter import NearCopies
from retain.datamodules.corpora.near.sample import NearSample, sampled
from retain.datamodules.corpora.packing import pack
from retain.datamodules.corpora.parts.download import Download, Say, download
from retain.datamodules.corpora.parts.plan import Cuts, cut_corpora
from retain.datamodules.corpora.preferences.packing import pack_pairs
from retain.datamodules.corpora.prepared import SPLITS, open_packed, packed_corpus, stored_tokenizer
from retain.datamodules.corpora.reading.report import Report, ignore_progress
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.study_documents import (
    check_document_ends,
    check_lengths,
    check_predictions,
    corpus_division,
    corpus_documents,
    heldout_hashes,
    pinned_corpus,
    sample_documents,
)
from retain.datamodules.corpora.sources import (
    Note,
    check_unchanged,
    checkpoint_definition,
    checkpoints_of,
    corpus_definition,
    corpus_source,
    corpus_sources,
    naming_corpus,
    naming_tokenizer,
    read_note,
    tokenizer_definition,
    tokenizer_settings,
    tokenizer_source,
    write_note,
)
from retain.datamodules.corpora.tasks.prepare import prepare_tasks, tasks_of
from retain.datamodules.corpora.tokenizer import (
    CHATML,
    CHATML_MARKERS,
    Tokenizer,
    fetch_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from retain.datamodules.corpora.values.prepare import prepare_values
from retain.sweeps.base.building import new_build_folder, publish, remove_leftovers, removed_on_error
from retain.sweeps.base.errors import DamageError, MissingResourceError
from retain.sweeps.base.files import writing
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import UNPREPARED, Facts, checkpoint_of

REPORT_EVERY = 1000
"""Documents between two reports while the tokeniser's sample is read."""

InParts = Callable[[StudyFile, Path, Cuts, Report], bool]
"""Prepares corpora of a study in a store; returns whether they are prepared, or will be later."""


def prepare(file: StudyFile, store: Path, report: Report = ignore_progress, in_parts: InParts | None = None) -> Facts:
    """Read, tokenise and pack what the study needs and the store lacks, or holds damaged.

    in_parts: prepares corpora that are cut into several parts; where it only has them prepared later, the returned facts are
    placeholders. None: this process prepares them too.

    Raises StudyError; MissingResourceError, also if a source changes while it is read.
    """
    sources = KnownSources(file, store)
    facts, later = known_facts(file, store, sources), False
    if not file.study.corpora:
        return facts
    # A server that cannot be asked does not matter to data that is prepared.
    before = {} if facts.prepared and not without_values(file, facts) else corpus_sources(file)
    # 1. Checkpoints, the tokeniser and the corpora.
    if not facts.prepared:
        with writing(str(store), "choose another store with --store"):
            remove_leftovers(store)
            for model in checkpoints_of(file):
                prepare_checkpoint(file, store, model, report)
            tokenizer = _prepare_tokenizer(file, store, report)
            near = NearCopies(file, store, tokenizer, report)
            lacking = [one for one in packings(file) if not _is_packed(file, store, *one, tokenizer.fingerprint)]
            cuts = cut_corpora(file, store, lacking, tokenizer.fingerprint) if in_parts is not None else {}
            for name, length in packings(file):
                if name not in cuts:
                    _prepare_corpus(file, store, name, length, near, report)
            if in_parts is not None and cuts:
                later = not in_parts(file, store, cuts, report)
        facts = known_facts(file, store, sources := KnownSources(file, store))
    # 2. The values of held-out documents, for corpora with `by`.
    if facts.prepared and (unlabelled := without_values(file, facts)):
        with writing(str(store), "choose another store with --store"):
            tokenizer = stored_tokenizer(store, facts.tokenizer)
            for name, length in unlabelled:
                report(name, 0, 0)
                packed = packed_corpus(store, facts.corpora[name, length].fingerprint)
                prepare_values(file, store, name, length, tokenizer, packed)
            check_unchanged(file, before)
        facts = known_facts(file, store, sources := KnownSources(file, store))
    # 3. Tasks.
    if facts.tasks:
        with writing(str(store), "choose another store with --store"):
            prepare_tasks(file, store)
    # 4. Check the result, unless some of it is prepared later.
    if not facts.prepared and not later:
        check_unchanged(file, before)
        raise MissingResourceError(
            f"{file.path.name}: the sources changed while they were prepared; prepare them again"
        )
    if facts.prepared and "within" in file.values("documents.attention"):
        for (name, _), one in facts.corpora.items():
            check_document_ends(file, name, packed_corpus(store, one.fingerprint))
    # 5. Note what was prepared, for readers whose sources have changed and for jobs that may not reach the servers.
    with contextlib.suppress(OSError):  # a store that may only be read
        _note_definitions(file, store, facts)
        sources.keep(facts)
    return facts


def download_sources(file: StudyFile, store: Path, say: Say) -> dict[str, Download]:
    """Fetch into the store what the study reads from the hub, so that it can be prepared without a network.

    Returns the copies of data sets, by corpus. Raises StudyError, MissingResourceError.
    """
    found = {}
    with writing(str(store), "choose another store with --store"):
        for model in checkpoints_of(file):
            prepare_checkpoint(file, store, model, ignore_progress)
        if tokenizer_settings(file).train is None:
            _prepare_tokenizer(file, store, ignore_progress)
        for name, corpus in file.study.corpora.items():
            with naming_corpus(file, name):
                if is_on_hub(corpus, file.folder):
                    found[name] = download(corpus, file.folder, store, say)
        if tasks_of(file):
            prepare_tasks(file, store)
    return found


def _prepare_tokenizer(file: StudyFile, store: Path, report: Report) -> Tokenizer:
    source = tokenizer_source(file)
    if note := read_note(store, source):
        with contextlib.suppress(DamageError):
            return stored_tokenizer(store, note.fingerprint)
    before = corpus_sources(file)
    settings = tokenizer_settings(file)
    report(TOKENIZER, 0, 0)
    if file.study.tokenizer is None:
        tokenizer = checkpoint_tokenizer(file, store)
    elif settings.hf is not None:
        with naming_tokenizer(file):
            tokenizer = fetch_tokenizer(settings.hf, settings.revision, file.folder)
    else:
        assert settings.train is not None
        held = heldout_hashes(file, store)
        samples = [sample_documents(file, store, name, settings.sample, held) for name in sorted(file.trained)]
        special = CHATML_MARKERS if settings.chat_template == CHATML else ()
        tokenizer = train_tokenizer(_reported(chain.from_iterable(samples), report), settings.train, special)
    check_unchanged(file, before)
    building = new_build_folder(store)
    with removed_on_error(building):
        tokenizer.save(building)
        publish(building, store / "tokenizers" / tokenizer.fingerprint, load_tokenizer)
    write_note(store, source, Note(tokenizer.fingerprint, {"vocabulary": tokenizer.vocabulary}))
    return stored_tokenizer(store, tokenizer.fingerprint)


def _reported(documents: Iterator[str], report: Report) -> Iterator[str]:
    """Yield the documents, and report how many have been read."""
    for number, document in enumerate(documents, 1):
        if number % REPORT_EVERY == 0:
            report(TOKENIZER, number, 0)
        yield document


def _is_packed(file: StudyFile, store: Path, name: str, length: int, tokenizer: str) -> bool:
    note = read_note(store, corpus_source(file, name, length, tokenizer))
    with contextlib.suppress(DamageError):
        return note is not None and bool(packed_corpus(store, note.fingerprint))
    return False


def _prepare_corpus(file: StudyFile, store: Path, name: str, length: int, near: NearCopies, report: Report) -> None:
    corpus, tokenizer = file.study.corpora[name], near.tokenizer
    source = corpus_source(file, name, length, tokenizer.fingerprint)
    if _is_packed(file, store, name, length, tokenizer.fingerprint):
        return
    before = corpus_sources(file)
    building = new_build_folder(store)
    pinned, tally, sample = pinned_corpus(file, name, store), Tally(), NearSample()
    documents = corpus_documents(file, name, pinned, tally=tally)
    packing = pack_pairs if corpus.is_pairs else partial(pack, masked=corpus.responses_only)
    with removed_on_error(building):
        packed = packing(
            near.distinct(name, documents, tally) if corpus.dedupe == "near" else sampled(documents, sample),
            tokenizer,
            length,
            corpus_division(file, name, pinned, store, tally),
            corpus.tokens,
            building,
            lambda documents, tokens: report(name, documents, tokens),
            tally=tally,
        )
        check_unchanged(file, before)
        check_lengths(file, name, packed, tally)
        check_predictions(file, name, packed)
        if corpus.dedupe != "near":
            sample.count(tally)
        publish(building, store / "corpora" / packed.fingerprint, open_packed)
    commit = pinned.revision if is_on_hub(corpus, file.folder) else None
    counts = {split: packed.count(split) for split in SPLITS}
    write_note(store, source, Note(packed.fingerprint, counts, tally.reading()), commit)


def _note_definitions(file: StudyFile, store: Path, facts: Facts) -> None:
    """Note what each definition was last prepared to, where that is not noted yet.

    While some data is prepared later, the notes of an earlier preparation stay, as they belong together.
    """
    tokenizer = Note(facts.tokenizer, {"vocabulary": facts.vocabulary})
    notes = [(tokenizer_definition(file), tokenizer)]
    for model in checkpoints_of(file):
        fingerprint = facts.checkpoints[checkpoint_of(model)].fingerprint
        notes.append((checkpoint_definition(file, model), Note(fingerprint, {})))
    for (name, length), one in facts.corpora.items():
        counts = {"train": one.train or 0, "heldout": one.heldout or 0}
        notes.append((corpus_definition(file, name, length), Note(one.fingerprint, counts, one.reading)))
    for definition, note in notes:
        known = read_note(store, definition)
        if known != note and (facts.prepared or (known is None and not note.fingerprint.startswith(UNPREPARED))):
            write_note(store, definition, note)
