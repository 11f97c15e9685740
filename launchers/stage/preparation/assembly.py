"""The kind `assemble`: put the parts of a corpus together, and publish the packed corpus."""

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from retain.datamodules.corpora.hub import is_on_hub
from retain.datamodules.corpora.parts.assemble import assemble
from retain.datamodules.corpora.parts.cut import Part
from retain.datamodules.corpora.parts.plan import CutCorpus, cut_corpus
from retain.datamodules.corpora.parts.read import part_documents
from retain.datamodules.corpora.parts.request import check_source, requested
from retain.datamodules.corpora.parts.speed import keep_speed
from retain.datamodules.corpora.parts.stored import TOKENS, StoredPart, is_part, open_part, write_part
from retain.datamodules.corpora.prepared import SPLITS, PackedCorpus, open_packed, stored_tokenizer
from retain.datamodules.corpora.reading.files import check_separator
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.study_documents import chat_template, check_predictions, corpus_division
from retain.datamodules.corpora.sources import Note, naming_corpus, write_note
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.log import log_line
from retain.launchers.stage.preparation.part import Watch, use_threads
from retain.results.store.disk import check_room, used_bytes
from retain.results.store.state import ASSEMBLED, PART, Progress
from retain.sweeps.base.building import new_build_folder, publish, removed_on_error
from retain.sweeps.base.errors import RetainError
from retain.sweeps.schema.read import StudyFile

EXTRA = "extra"
"""The folder of a run with parts beyond those that were estimated."""


def attempt(context: AttemptContext) -> None:
    """Assemble the corpus, and finish the run. Raises StudyError, MissingResourceError, AttemptStopped, DamageError."""
    source, root = context.spec["recipe"]["source"], context.store.root
    use_threads(context.spec["execution"])
    context.begin()
    file, name, corpus = requested(context.spec["reads"])
    check_source(file, name, source)
    tokenizer = stored_tokenizer(root, source["tokenizer"])
    cut = cut_corpus(file, name, tokenizer.fingerprint, corpus)
    check_room(root, sum(used_bytes(root / key / PART / TOKENS) for key in cut.keys))
    building = new_build_folder(root)
    watch, tally = Watch(context), Tally()
    with removed_on_error(building):
        packed = _assembled(context, file, cut, tokenizer, watch, building, tally)
        check_source(file, name, source)
        check_predictions(file, name, packed)
    publish(building, root / "corpora" / packed.fingerprint, open_packed)
    counts = {split: packed.count(split) for split in SPLITS}
    commit = corpus.revision if is_on_hub(file.study.corpora[name], file.folder) else None
    write_note(root, source, Note(packed.fingerprint, counts, tally.reading()), commit)
    tokens = sum(counts.values()) * source["sequence_length"]
    log_line(f"{name}: {tokens:,} tokens, fingerprint {packed.fingerprint}")
    context.report(Progress(tokens, tokens))
    _keep_speed(context)
    context.finish(None, {ASSEMBLED: {"fingerprint": packed.fingerprint} | counts})
    shutil.rmtree(context.run.folder / EXTRA, ignore_errors=True)


def _assembled(
    context: AttemptContext,
    file: StudyFile,
    cut: CutCorpus,
    tokenizer: Tokenizer,
    watch: Watch,
    building: Path,
    tally: Tally,
) -> PackedCorpus:
    """Assemble the corpus in a build folder. tally: gets the counts. Raises errors that name the corpus."""
    corpus = cut.corpus

    def opened(part: Part) -> StoredPart:
        found = _stored(context, file, cut, tokenizer, watch, part)
        tally.counts.update(found.manifest["counts"])
        return found

    with _naming(file, cut.name):
        streams = [map(opened, stream) for stream in cut.cut.streams]
        return assemble(
            streams,
            tokenizer,
            context.spec["recipe"]["source"]["sequence_length"],
            corpus_division(file, cut.name, corpus, context.store.root, tally),
            corpus.tokens,
            building,
            watch,
            corpus.responses_only,
            partial(_check_end, cut),
            tally,
        )


@contextlib.contextmanager
def _naming(file: StudyFile, name: str) -> Iterator[None]:
    """Let errors name the study file and the corpus, unless they name one: that of a held-out split may be another."""
    try:
        yield
    except RetainError as error:
        if str(error).startswith(f"{file.path.name}: "):
            raise
        with naming_corpus(file, name):
            raise


def _stored(
    context: AttemptContext, file: StudyFile, cut: CutCorpus, tokenizer: Tokenizer, watch: Watch, part: Part
) -> StoredPart:
    """A part as its run has prepared it, checked. A part beyond the estimate is prepared here."""
    run = context.store.run(cut.key(part))
    if run.is_done() and is_part(run.folder / PART):
        found = open_part(run.folder / PART)
        found.check()
        return found
    place = context.run.folder / EXTRA / run.key
    try:
        found = open_part(place)
    except FileNotFoundError:
        log_line(f"part {run.key[:8]} was not prepared, and the budget needs it: it is prepared here")
        building = place.with_name(f"{run.key}.partial")
        tally, chat = Tally(), chat_template(file, cut.corpus)
        documents = part_documents(cut.corpus, file.folder, part, cut.cut.shards, chat, tally)
        with removed_on_error(building):
            write_part(documents, tokenizer, cut.corpus.responses_only, building, watch, tally)
        building.rename(place)
        found = open_part(place)
    found.check()
    return found


def _keep_speed(context: AttemptContext) -> None:
    """Keep how fast the parts were prepared, for later plans."""
    tokens, seconds = 0, 0.0
    for run in map(context.store.run, context.run.needs()):
        attempts = run.state().attempts
        if run.is_done() and attempts and attempts[-1].end is not None:
            tokens += attempts[-1].tokens
            seconds += (attempts[-1].end - attempts[-1].start) * run.spec()["execution"]["threads"]
    keep_speed(context.store.root, tokens, seconds)


def _check_end(cut: CutCorpus, documents: int) -> None:
    """Raise StudyError if files of plain text hold no separator. documents: those of the whole source."""
    pieces: Iterator[str] = (piece.file for part in cut.cut.parts for piece in part.pieces)
    if cut.corpus.separator is not None:
        check_separator(cut.corpus.separator, documents, len(set(pieces)))
