"""The kind `prepare`: read and tokenise one part of a corpus."""

import os
import time
from typing import Any

from retain.datamodules.corpora.parts.plan import part_of
from retain.datamodules.corpora.parts.read import part_documents
from retain.datamodules.corpora.parts.request import requested
from retain.datamodules.corpora.parts.stored import UNNEEDED, write_part
from retain.datamodules.corpora.prepared import stored_tokenizer
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.study_documents import chat_template
from retain.datamodules.corpora.sources import naming_corpus
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.log import log_line
from retain.launchers.stage.preparation.surplus import is_surplus
from retain.launchers.stage.signals import AttemptStopped
from retain.results.store.disk import check_room
from retain.results.store.state import PART, Progress
from retain.sweeps.base.building import removed_on_error
from retain.sweeps.base.documents import write_document

REPORT_EVERY_S = 1.0
ROOM = 2**20
"""Bytes that must be free besides one for each token that is expected: the disk may be full before the part is whole."""


def attempt(context: AttemptContext) -> None:
    """Prepare the part, and finish the run. Raises StudyError that names file and line, AttemptStopped, DamageError."""
    recipe, run = context.spec["recipe"], context.run
    use_threads(context.spec["execution"])
    context.begin()
    if is_surplus(context.store, context.spec):
        _leave_out(context)
        return
    check_room(run.folder, ROOM + context.spec["tokens"])
    file, name, corpus = requested(context.spec["reads"])
    tokenizer = stored_tokenizer(context.store.root, recipe["tokenizer"])
    building = run.folder / f"{PART}.partial"
    watch, tally = Watch(context), Tally()
    with removed_on_error(building), naming_corpus(file, name):
        documents = part_documents(
            corpus, file.folder, part_of(recipe), recipe.get("shards", 0), chat_template(file, corpus), tally
        )
        part = write_part(documents, tokenizer, corpus.responses_only, building, watch, tally)
    tokens = part.manifest["tokens"]
    log_line(f"{part.manifest['documents']:,} documents, {tokens:,} tokens")
    context.report(Progress(tokens, tokens))
    context.finish(building, {}, place=PART)


def _leave_out(context: AttemptContext) -> None:
    """Finish the run without a part."""
    building = context.run.folder / f"{PART}.partial"
    with removed_on_error(building):
        building.mkdir()
        write_document(building / UNNEEDED, {"reason": "the parts before it reach the budget"})
    log_line("the parts before this one reach the budget: it is left out")
    context.finish(building, {}, place=PART)


class Watch:
    """Reports progress while documents are read, and ends the attempt if it is to stop."""

    def __init__(self, context: AttemptContext) -> None:
        self.context, self.reported = context, time.monotonic()

    def __call__(self, documents: int, tokens: int) -> None:
        if self.context.stop.signal:
            raise AttemptStopped(self.context.stop.signal)
        if time.monotonic() - self.reported > REPORT_EVERY_S:
            self.reported = time.monotonic()
            self.context.report(Progress(tokens, max(tokens, self.context.spec["tokens"])))


def use_threads(execution: dict[str, Any]) -> None:
    """Let the tokeniser use the threads of a process; it reads these variables when it is first used."""
    os.environ["RAYON_NUM_THREADS"] = str(execution["threads"])
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if execution["threads"] > 1 else "false"
