"""Join the fields of a record into one document."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.published_corpora import template_pieces

HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""A lone surrogate, as JSON can write it; no text in UTF-8 holds one."""


@dataclass(frozen=True)
class Template:
    """Literal texts with fields of a record between them."""

    pieces: tuple[tuple[str, str | None], ...]
    """Pairs of a literal text and the name of the field that follows it, None after the last text."""
    setting: str
    """The field of the corpus that names the record's fields, for error messages: text or template."""

    @property
    def fields(self) -> list[str]:
        """The names of the fields that a record must have, each once."""
        return list(dict.fromkeys(field for _, field in self.pieces if field is not None))

    def join(self, record: object, where: str) -> str:
        """Return the document that a record holds.

        where: the record's source, for error messages. Raises StudyError if a field is missing or is not text.
        """
        if not isinstance(record, Mapping):
            raise StudyError(
                f"{where}: the record is a {type(record).__name__}, expected an object with fields; fix or remove the record"
            )
        values = {field: self._text(record, field, where) for field in self.fields}
        return "".join(text + (values[field] if field is not None else "") for text, field in self.pieces)

    def _text(self, record: Mapping[str, object], field: str, where: str) -> str:
        try:
            value = _value(record, field)
        except KeyError:
            raise StudyError(
                f"{where}: field {field!r} not found (the fields are {', '.join(_names(record))}); correct "
                f"`{self.setting}:` in the corpus"
            ) from None
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            raise StudyError(
                f"{where}: field {field!r} is a list of messages, expected text; write each conversation as one text into a "
                "field of its own, for instance with `apply_chat_template(messages, tokenize=False)` of its tokeniser"
            )
        if not isinstance(value, str):
            found = "null" if value is None else f"of type {type(value).__name__}"
            raise StudyError(
                f"{where}: field {field!r} is {found}, expected text; correct `{self.setting}:` in the corpus, or fix the "
                "record"
            )
        if not value.isascii() and (half := HALF_A_PAIR.search(value)):
            raise StudyError(
                f"{where}: field {field!r} holds \\u{ord(half[0]):04x}, which is half of a character; fix or remove the record"
            )
        return value


def _value(record: Mapping[str, object], field: str) -> object:
    """The value of a field of a record. `a.b` is field b of the object in field a, unless a field has this very name.

    Raises KeyError if there is none.
    """
    if field in record:
        return record[field]
    value: object = record
    for name in field.split("."):
        if value is None:
            break
        if not isinstance(value, Mapping):
            raise KeyError(field)
        value = value[name]
    return value


def _names(record: Mapping[str, object]) -> list[str]:
    """The names of a record's fields, with those of the objects in it: text, meta, meta.source."""
    names = []
    for name, value in record.items():
        names.append(str(name))
        if isinstance(value, Mapping):
            names += [f"{name}.{inner}" for inner in value]
    return names


def corpus_template(corpus: Corpus) -> Template:
    """Return a corpus's `template`; without one, a template that is the corpus's `text` field alone."""
    if corpus.template is None:
        return Template((("", corpus.text),), "text")
    return Template(tuple(template_pieces(corpus.template)), "template")
