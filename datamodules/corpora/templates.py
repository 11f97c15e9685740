"""Join the fields of a record into one document."""

from collections.abc import Mapping
from dataclasses import dataclass

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.published_corpora import template_pieces
from retain.sweeps.schema.study import Corpus


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
        for field in self.fields:
            if field not in record:
                raise StudyError(
                    f"{where}: field {field!r} not found (the fields are {', '.join(map(str, record))}); correct "
                    f"`{self.setting}:` in the corpus"
                )
            value = record[field]
            if not isinstance(value, str):
                found = "null" if value is None else f"of type {type(value).__name__}"
                raise StudyError(
                    f"{where}: field {field!r} is {found}, expected text; correct `{self.setting}:` in the corpus, or fix the "
                    "record"
                )
        return "".join(text + (record[field] if field is not None else "") for text, field in self.pieces)


def corpus_template(corpus: Corpus) -> Template:
    """Return a corpus's `template`; without one, a template that is the corpus's `text` field alone."""
    if corpus.template is None:
        return Template((("", corpus.text),), "text")
    return Template(tuple(template_pieces(corpus.template)), "template")
