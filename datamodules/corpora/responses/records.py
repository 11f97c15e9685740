"""Turn a record into a document with marked responses: a prompt with its response or with two, or a conversation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from retain.datamodules.corpora.reading.templates import Template, check_text, field_value
from retain.datamodules.corpora.responses.chat import ChatTemplate
from retain.datamodules.corpora.responses.marked import Document, Marked, Pair
from retain.sweeps.base.errors import StudyError
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
        return Marked(prompt + response, ((len(prompt), len(prompt) + len(response)),), rendered=False)


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
        return Pair(prompt, chosen, rejected) if all(map(str.strip, (prompt, chosen, rejected))) else ""


@dataclass(frozen=True)
class Conversations:
    """A field with a list of messages, which a chat template writes."""

    field: str
    chat: ChatTemplate | None
    """None for a look at the data: the contents alone."""

    @property
    def fields(self) -> list[str]:
        return [self.field]

    def check(self, record: object, where: str) -> None:
        field_value(record, self.field, where, "messages")

    def join(self, record: object, where: str) -> Document | None:
        messages = field_value(record, self.field, where, "messages")
        if messages is None:
            return None
        if isinstance(messages, str) or not isinstance(messages, list):
            found = "text" if isinstance(messages, str) else type(messages).__name__
            raise StudyError(
                f"{where}: field {self.field!r} is {found}, expected a list of messages; correct `messages:` in the "
                "corpus, or fix the record"
            )
        checked = [self._message(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]
        if not checked:
            return ""
        if self.chat is None:
            return "\n".join(str(message["content"]) for message in checked)
        return self.chat.render(checked, where)

    def _message(self, message: object, where: str) -> dict[str, object]:
        """A message without its empty fields, as transformers passes it on. Raises StudyError."""
        if not isinstance(message, Mapping):
            raise StudyError(
                f"{where}: expected an object with role and content (got {type(message).__name__}); fix or remove the record"
            )
        for name in ("role", "content"):
            if name not in message:
                raise StudyError(
                    f"{where}: field {name!r} not found (the fields are {', '.join(map(str, message))}); fix or remove the "
                    "record"
                )
            check_text(message[name], name, where, "fix or remove the record")
        return {str(name): value for name, value in message.items() if value is not None}


def document_of(reader: RecordReader, record: object, where: str) -> Document | None:
    """Return the document of a record; None for null, empty text for a record without fields. Raises as `join` does."""
    if record is None:
        return None
    return reader.join(record, where) if record != {} else ""


def record_reader(corpus: Corpus, chat: ChatTemplate | None) -> RecordReader:
    """Return what turns the records of a corpus into documents: its `messages`, `chosen`, `prompt`, `template` or `text`."""
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
