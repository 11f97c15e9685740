"""How the fields of a record become one document."""

from collections.abc import Mapping
from dataclasses import dataclass

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.published_corpora import template_pieces
from retain.sweeps.schema.study import Corpus


@dataclass(frozen=True)
class Template:
    """Texts and the fields between them."""

    pieces: tuple[tuple[str, str | None], ...]
    """Each a text and the field that follows it, if any does."""
    setting: str
    """What a user corrects where a field is not there: text or template."""

    @property
    def fields(self) -> list[str]:
        """The fields of a record that it needs, each once."""
        return list(dict.fromkeys(field for _, field in self.pieces if field is not None))

    def join(self, record: object, where: str) -> str:
        """The document that a record holds. Raises StudyError, naming `where`, for a field that is missing or no text."""
        fields = record if isinstance(record, Mapping) else {}
        for field in self.fields:
            if not isinstance(fields.get(field), str):
                there = ", ".join(map(str, fields)) if isinstance(record, Mapping) else type(record).__name__
                raise StudyError(
                    f"{where}: no text in field {field!r} (it has {there}); set {self.setting}: in the corpus"
                )
        return "".join(text + (fields[field] if field is not None else "") for text, field in self.pieces)


def template_of(corpus: Corpus) -> Template:
    """The template of a corpus, or the one field that it names."""
    if corpus.template is None:
        return Template((("", corpus.text),), "text")
    return Template(tuple(template_pieces(corpus.template)), "template")
