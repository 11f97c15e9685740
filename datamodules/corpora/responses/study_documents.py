"""The documents of a study's corpora: read at one commit, with the study's chat template, and divided into splits."""

from collections.abc import Collection, Iterator
from pathlib import Path

from retain.datamodules.corpora.documents import document_hash, is_heldout, read_documents
from retain.datamodules.corpora.hub import pinned
from retain.datamodules.corpora.packing import Division
from retain.datamodules.corpora.parts.download import local_copy
from retain.datamodules.corpora.prepared import PackedCorpus
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.chat import ChatTemplate, find_chat_template
from retain.datamodules.corpora.responses.marked import Document, text_of, texts_of
from retain.datamodules.corpora.sources import (
    corpora_with_splits,
    naming_corpus,
    tokenizer_settings,
    withheld_share,
    withheld_texts_share,
)
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.read import StudyFile


def pinned_corpus(file: StudyFile, name: str, store: Path) -> Corpus:
    """Return a corpus pinned to one commit, so that the commit it is read at can be recorded; its copy in the store, if any."""
    corpus = file.study.corpora[name]
    with naming_corpus(file, name):
        return local_copy(corpus, file.folder, store) or pinned(corpus, file.folder)


def corpus_documents(
    file: StudyFile, name: str, corpus: Corpus, heldout: bool = False, tally: Tally | None = None
) -> Iterator[Document]:
    """Yield the documents of a corpus, or of its held-out split. Raises StudyError or MissingResourceError that name it.

    tally: see `read_documents`.
    """
    with naming_corpus(file, name, heldout):
        yield from read_documents(corpus, file.folder, chat_template(file, corpus), tally)


def sample_documents(file: StudyFile, store: Path, name: str, characters: int, held: Collection[int]) -> Iterator[str]:
    """Yield training documents from the beginning of a corpus, up to a number of characters in all.

    held: the hashes of documents in held-out splits that corpora bring along.
    """
    for document in corpus_documents(file, name, pinned_corpus(file, name, store)):
        own_split = held and any(document_hash(text) in held for text in texts_of(document))
        if not is_heldout(document, withheld_share(file)) and not own_split:
            text = text_of(document)
            yield text[:characters]
            characters -= len(text)
            if characters <= 0:
                return


def corpus_division(file: StudyFile, name: str, corpus: Corpus, store: Path, tally: Tally | None = None) -> Division:
    """Return how the documents of a corpus are divided. corpus: the same, pinned. tally: see `read_documents`."""
    held = corpus.heldout_corpus
    own = () if held is None else corpus_documents(file, name, held, heldout=True, tally=tally)
    others, texts = heldout_hashes(file, store, without=name), withheld_texts_share(file, name)
    return Division(corpus.heldout_share, withheld_share(file), own, others, texts)


def heldout_hashes(file: StudyFile, store: Path, without: str | None = None) -> Collection[int]:
    """Return the hashes of all documents in held-out splits that corpora bring along. without: a corpus that does not count."""
    found: set[int] = set()
    for name in corpora_with_splits(file):
        held = pinned_corpus(file, name, store).heldout_corpus
        if name != without and held is not None:
            for document in corpus_documents(file, name, held, heldout=True):
                found.update(map(document_hash, texts_of(document)))
    return found


def check_predictions(file: StudyFile, name: str, packed: PackedCorpus) -> None:
    """Raise StudyError if a split of a packed corpus has sequences, but no predicted token."""
    for split, title in (("train", "training"), ("heldout", "held-out")):
        if packed.count(split) and not packed.predicted(split):
            raise StudyError(
                f"{file.path.name}: corpora.{name}: the {title} split holds no response, so nothing would be predicted; "
                "correct response or messages, or set predict: all"
            )


def check_lengths(file: StudyFile, name: str, packed: PackedCorpus, tally: Tally) -> None:
    """Raise StudyError if no pair of a packed corpus is left, because all are too long. tally: the counts of packing."""
    if tally.counts["long"] and not packed.count("train"):
        _, length = packed.shape("train")
        raise StudyError(
            f"{file.path.name}: corpora.{name}: every pair for training is longer than a sequence of {length} tokens; raise "
            "sequence_length, or shorten prompts and responses"
        )


def check_document_ends(file: StudyFile, name: str, packed: PackedCorpus) -> None:
    """Raise StudyError if conversations of a packed corpus hold an end of text before their end: it would end documents there.

    For studies in which tokens attend within their documents.
    """
    if packed.ends_inside:
        raise StudyError(
            f"{file.path.name}: documents.attention: within would cut the conversations of corpora.{name}, because they hold "
            "the tokeniser's end of text; set documents.attention: across, remove it from the messages, or choose a tokeniser "
            "whose end of text its chat template does not write"
        )


def chat_template(file: StudyFile, corpus: Corpus) -> ChatTemplate | None:
    """Return the template that writes the conversations of a corpus; None for a corpus without any."""
    return find_chat_template(tokenizer_settings(file), file.folder) if corpus.has_conversations else None
