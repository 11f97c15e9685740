"""Turn a record into a document with marked responses: a prompt with its response or with two, or a conversation."""

from dataclasses import dataclass
from typing import Protocol

from retain.datamodules.corpora.reading.templates import Template
from retain.datamodules.corpora.responses.chat import ChatTemplate
from retain.datamodules.corpora.responses.marked import Document, Pair, answered
from retain.datamodules.corpora.responses.messages import Conversations, PairOfConversations
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.published_corpora import template_pieces


class RecordReader(Protocol):
    """Turns records into documents."""

    @property
    def fields(self) -> list[str]:
        """The names of the fields that a record must have, each once."""
        ...

    def check(self, record: object, where: str) -> None:
        """Raise StudyError if a record lacks a field, whatever is in the fields."""
        ...

    def join(self, record: object, where: str) -> Document | None:
        """Return the document that a record holds; None if a field is null, empty text for none.

        where: the record's source, for error messages. Raises StudyError if a field is missing or cannot be used.
        """
        ...


@dataclass(frozen=True)
class PromptAndResponse:
    """Two templates, of which the second is predicted."""

    prompt: Template
    response: Template

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys((*self.prompt.fields, *self.response.fields)))

    def check(self, record: object, where: str) -> None:
        self.prompt.check(record, where)
        self.response.check(record, where)

    def join(self, record: object, where: str) -> Document | None:
        prompt, response = self.prompt.join(record, where), self.response.join(record, where)
        if prompt is None or response is None:
            return None
        return answered(prompt, response)


@dataclass(frozen=True)
class PromptAndPair:
    """Three templates: a prompt, and two responses of which the first is preferred."""

    prompt: Template
    chosen: Template
    rejected: Template

    @property
    def parts(self) -> tuple[Template, Template, Template]:
        return self.prompt, self.chosen, self.rejected

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(field for part in self.parts for field in part.fields))

    def check(self, record: object, where: str) -> None:
        for part in self.parts:
            part.check(record, where)

    def join(self, record: object, where: str) -> Document | None:
        """As of `RecordReader`; a pair with an empty part is no document."""
        prompt, chosen, rejected = (part.join(record, where) for part in self.parts)
        if prompt is None or chosen is None or rejected is None:
            return None
        if not all(map(str.strip, (prompt, chosen, rejected))):
            return ""
        return Pair(prompt, answered(prompt, chosen), answered(prompt, rejected))


def document_of(reader: RecordReader, record: object, where: str) -> Document | None:
    """Return the document of a record; None for null, empty text for a record without fields. Raises as `join` does."""
    if record is None:
        return None
    return reader.join(record, where) if record != {} else ""


def record_reader(corpus: Corpus, chat: ChatTemplate | None) -> RecordReader:
    """Return what turns the records of a corpus into documents, by which of its fields are given.

    chat: None for a look at the data, which shows the contents of messages alone.
    """
    if corpus.chosen_messages is not None:
        assert corpus.rejected_messages is not None
        return PairOfConversations(corpus.messages, corpus.chosen_messages, corpus.rejected_messages, chat)
    if corpus.messages is not None:
        return Conversations(corpus.messages, chat)
    if corpus.chosen is not None:
        assert corpus.prompt is not None
        assert corpus.rejected is not None
        parts = {"prompt": corpus.prompt, "chosen": corpus.chosen, "rejected": corpus.rejected}
        return PromptAndPair(*(Template(tuple(template_pieces(text)), name) for name, text in parts.items()))
    if corpus.prompt is not None:
        assert corpus.response is not None
        prompt, response = (tuple(template_pieces(text)) for text in (corpus.prompt, corpus.response))
        return PromptAndResponse(Template(prompt, "prompt"), Template(response, "response"))
    if corpus.template is None:
        return Template((("", corpus.text),), "text")
    return Template(tuple(template_pieces(corpus.template)), "template")
