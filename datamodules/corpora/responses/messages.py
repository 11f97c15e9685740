"""Turn the messages of a record into a conversation with marked turns, or into two that begin alike."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retain.datamodules.corpora.reading.templates import check_text, field_value
from retain.datamodules.corpora.responses.chat import ASSISTANT, ChatTemplate
from retain.datamodules.corpora.responses.marked import Document, Marked, Pair, answered
from retain.sweeps.base.errors import StudyError

Message = Mapping[str, object]


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
        messages = read_messages(record, self.field, where, "messages")
        if not messages:
            return None if messages is None else ""
        return _contents(messages) if self.chat is None else self.chat.render(messages, where)


@dataclass(frozen=True)
class PairOfConversations:
    """Two fields with lists of messages that begin alike, of which the first is preferred."""

    prompt: str | None
    """A field with the messages before those of both fields; None if there is none."""
    chosen: str
    rejected: str
    chat: ChatTemplate | None
    """As of `Conversations`."""

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(self._settings.values()))

    @property
    def _settings(self) -> dict[str, str]:
        """The names of the record's fields, by the fields of the corpus."""
        prompt = {} if self.prompt is None else {"messages": self.prompt}
        return prompt | {"chosen_messages": self.chosen, "rejected_messages": self.rejected}

    def check(self, record: object, where: str) -> None:
        for setting, name in self._settings.items():
            field_value(record, name, where, setting)

    def join(self, record: object, where: str) -> Document | None:
        """As of `RecordReader`; a pair without a prompt, or with a response that is missing or empty, is no document.

        The prompt is all messages with which both conversations begin; the assistant's turns after them are the responses.
        """
        found = [read_messages(record, name, where, setting) for setting, name in self._settings.items()]
        read = [messages for messages in found if messages is not None]
        if len(read) < len(found):
            return None
        *before, chosen, rejected = read
        alike = _beginning(chosen, rejected)
        prompt = [*itertools.chain(*before), *chosen[:alike]]
        answers = chosen[alike:], rejected[alike:]
        if not all(map(_says, answers)):
            return ""
        for name, answer in zip((self.chosen, self.rejected), answers, strict=True):
            if answer[0]["role"] != ASSISTANT:
                raise StudyError(
                    f"{where}: the conversations in {self.chosen!r} and {self.rejected!r} differ first in a message of role "
                    f"{answer[0]['role']!r} ({name}), and the two of a pair differ from an assistant's turn on; fix or remove "
                    "the record"
                )
        if not prompt:
            return ""
        one, other = (self._write(prompt, answer, where) for answer in answers)
        return Pair(json.dumps(prompt, ensure_ascii=False, sort_keys=True), one, other)

    def _write(self, prompt: list[Message], answer: list[Message], where: str) -> Marked:
        """A conversation in which the assistant's turns of the answer alone are marked."""
        if self.chat is None:
            return answered(_contents(prompt) + "\n", _contents(answer))
        whole = self.chat.render([*prompt, *answer], where)
        earlier = len(self.chat.render(prompt, where).spans)
        if len(whole.spans) <= earlier:
            raise StudyError(
                f"{where}: the chat template marks no turn of the assistant after the prompt; fix or remove the record, or set "
                "another tokenizer.chat_template"
            )
        return Marked(whole.text, whole.spans[earlier:], rendered=True)


def read_messages(record: object, field: str, where: str, setting: str) -> list[Message] | None:
    """Return the messages that a field of a record holds; None if it is null.

    setting: the field of the corpus that names it. Raises StudyError if there is no such field, or if it holds no messages.
    """
    messages = field_value(record, field, where, setting)
    if messages is None:
        return None
    if isinstance(messages, str) or not isinstance(messages, list):
        found = "text" if isinstance(messages, str) else type(messages).__name__
        raise StudyError(
            f"{where}: field {field!r} is {found}, expected a list of messages; correct `{setting}:` in the corpus, or fix the "
            "record"
        )
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(messages, 1)]


def _message(message: object, where: str) -> Message:
    """A message without its empty fields, as transformers passes it on. Raises StudyError."""
    if not isinstance(message, Mapping):
        raise StudyError(
            f"{where}: expected an object with role and content (got {type(message).__name__}); fix or remove the record"
        )
    for name in ("role", "content"):
        if name not in message:
            raise StudyError(
                f"{where}: field {name!r} not found (the fields are {', '.join(map(str, message))}); fix or remove the record"
            )
        check_text(message[name], name, where, "fix or remove the record")
    return {str(name): value for name, value in message.items() if value is not None}


def _contents(messages: Sequence[Message]) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def _beginning(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of messages with which two conversations begin alike; the last one of each does not count."""
    pairs = list(zip(one[:-1], other[:-1], strict=False))
    return next((place for place, (first, second) in enumerate(pairs) if first != second), len(pairs))


def _says(messages: Sequence[Message]) -> bool:
    """Whether the assistant says something in any of these messages."""
    return any(message["role"] == ASSISTANT and str(message["content"]).strip() for message in messages)
