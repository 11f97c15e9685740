"""Join the fields of a record into one document."""

from collections.abc import Mapping
from dataclasses import dataclass

from retain.sweeps.base.errors import StudyError


@dataclass(frozen=True)
class Template:
    """Literal texts with fields of a record between them."""

    pieces: tuple[tuple[str, str | None], ...]
    """Pairs of a literal text and the name of the field that follows it, None after the last text."""
    setting: str
    """The field of the corpus that names the record's fields, for error messages, such as text or template."""

    @property
    def fields(self) -> list[str]:
        """The names of the fields that a record must have, each once."""
        return list(dict.fromkeys(field for _, field in self.pieces if field is not None))

    def check(self, record: object, where: str) -> None:
        """Raise StudyError if a record lacks a field, whatever is in the fields."""
        for field in self.fields:
            field_value(record, field, where, self.setting)

    def join(self, record: object, where: str) -> str | None:
        """Return the document that a record holds; None if a field is null.

        where: the record's source, for error messages. Raises StudyError if a field is missing or is not text.
        """
        values: dict[str | None, str] = {None: ""}
        for field in self.fields:
            value = field_value(record, field, where, self.setting)
            if value is None:
                return None
            values[field] = self._text(value, field, where)
        return "".join(text + values[field] for text, field in self.pieces)

    @property
    def _of_messages(self) -> str:
        """The field of a corpus that names messages where this one names text."""
        return f"{self.setting}_messages" if self.setting in ("chosen", "rejected") else "messages"

    def _text(self, value: object, field: str, where: str) -> str:
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            raise StudyError(
                f"{where}: field {field!r} is a list of messages, expected text; write `{self._of_messages}: {field}` in the "
                f"corpus instead of `{self.setting}:`"
            )
        return check_text(value, field, where, f"correct `{self.setting}:` in the corpus, or fix the record")


def field_value(record: object, field: str, where: str, setting: str) -> object:
    """Return the value of a field of a record; `meta.body` is a field of an object.

    setting: the field of the corpus that names it. Raises StudyError if the record has no such field or is no object.
    """
    if not isinstance(record, Mapping):
        raise StudyError(
            f"{where}: the record is a {type(record).__name__}, expected an object with fields; fix or remove the record"
        )
    try:
        return _value(record, field)
    except KeyError:
        raise StudyError(
            f"{where}: field {field!r} not found (the fields are {', '.join(_names(record))}); correct `{setting}:` in the "
            "corpus"
        ) from None


def check_text(value: object, field: str, where: str, cure: str) -> str:
    """Return the text that a field holds. Raises StudyError if it is something else."""
    if not isinstance(value, str):
        found = "null" if value is None else f"of type {type(value).__name__}"
        raise StudyError(f"{where}: field {field!r} is {found}, expected text; {cure}")
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
