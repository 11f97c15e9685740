"""Drop near copies from the documents of a corpus with `dedupe: near`, so that none of a held-out document is trained on."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout, is_heldout
from retain.datamodules.corpora.near.index import NearIndex
from retain.datamodules.corpora.near.minhash import Bands, bands
from retain.datamodules.corpora.packing import pack
from retain.datamodules.corpora.parts.batches import batch_documents
from retain.datamodules.corpora.preferences.packing import pack_pairs
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, text_of
from retain.datamodules.corpora.responses.study_documents import (
    corpus_division,
    corpus_documents,
    heldout_hashes,
    pinned_corpus,
)
from retain.datamodules.corpora.sources import compared_corpora, withheld_share
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.sweeps.base.building import new_build_folder
from retain.sweeps.schema.read import StudyFile

REPORT_EVERY = 1000
"""Documents between two reports."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out documents of a corpus, as they are without `dedupe: near`."""

    bands: list[Bands]
    documents: int | None
    """The number of distinct documents that are read for them; None for the whole source."""


@dataclass
class NearCopies:
    """Finds near copies for the corpora of a study; each corpus is read once more for its held-out documents."""

    file: StudyFile
    store: Path
    tokenizer: Tokenizer
    report: Callable[[str, int, int], None]
    known: dict[str, HeldOut] = field(default_factory=dict)

    def distinct(self, name: str, documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
        """Yield the documents of a corpus, without training documents that are near copies.

        That is of a held-out document of any corpus that is trained on, or of an earlier training document of this corpus. The
        held-out split stays what it is without `dedupe: near`, so losses can be compared.
        """
        heldout, trained = NearIndex(), NearIndex()
        for other in compared_corpora(self.file, name):
            heldout.add(self.held_out(other).bands)
        share, withheld = self.file.study.corpora[name].heldout_share, withheld_share(self.file)
        last = self.held_out(name).documents
        seen, read = HashSet(), 0
        seen.add(list(heldout_hashes(self.file, self.store, without=name)))
        tally.compared = True
        for batch in batch_documents(documents):
            hashes = [document_hash(text_of(document)) for document in batch]
            new = set(seen.add(hashes))
            places = [place for place in sorted(new) if not hash_is_heldout(hashes[place], max(share, withheld))]
            found = [bands(text_of(batch[place])) for place in places]
            leaked = heldout.near(found)
            rest = [number for number in range(len(found)) if not leaked[number]]
            near = trained.add_distinct([found[number] for number in rest])
            dropped = {place for place, is_near in zip(places, leaked, strict=True) if is_near}
            copies = {places[number] for number, is_near in zip(rest, near, strict=True) if is_near}
            for place, document in enumerate(batch):
                read += place in new
                tally.counts["leaked"] += place in dropped
                tally.counts["near"] += place in copies
                # The packing drops exact copies, and counts them.
                beyond = last is not None and read > last and hash_is_heldout(hashes[place], share)
                if not (place in dropped or place in copies or beyond):
                    yield document

    def held_out(self, name: str) -> HeldOut:
        """Return the held-out documents of a corpus, read at the first call."""
        if name not in self.known:
            self.known[name] = self._read_held_out(name)
        return self.known[name]

    def _read_held_out(self, name: str) -> HeldOut:
        corpus, pinned = self.file.study.corpora[name], pinned_corpus(self.file, name, self.store)
        found: list[Bands] = []

        def tapped() -> Iterator[Document]:
            for number, document in enumerate(corpus_documents(self.file, name, pinned)):
                if number % REPORT_EVERY == 0:
                    self.report(f"held-out documents of {name}", number, 0)
                if is_heldout(document, corpus.heldout_share):
                    found.append(bands(text_of(document)))
                yield document

        if (held := pinned.heldout_corpus) is not None:
            own = corpus_documents(self.file, name, held, heldout=True)
            return HeldOut([bands(text_of(document)) for document in own], None)
        if corpus.tokens is None:
            for _ in tapped():
                pass
            return HeldOut(found, None)
        building, tally = new_build_folder(self.store), Tally()
        length = self.file.study.sequence_length
        division = corpus_division(self.file, name, pinned, self.store)
        try:
            packing = pack_pairs if corpus.is_pairs else pack
            packing(tapped(), self.tokenizer, length, division, corpus.tokens, building, lambda *_: None, tally=tally)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return HeldOut(found, tally.counts["documents"] + tally.counts["withheld"])
