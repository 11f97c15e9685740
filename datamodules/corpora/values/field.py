"""Read the value of the field `by` with each document."""

from dataclasses import dataclass

from retain.datamodules.corpora.reading.templates import field_value
from retain.datamodules.corpora.responses.marked import Document
from retain.datamodules.corpora.responses.records import RecordReader
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import shortened

NO_VALUE = "none"
"""The value of documents whose field is missing, null or empty."""
LONGEST = 100
"""The most characters of a value, which is part of the names of columns."""


@dataclass
class ValueReader:
    """Turns records into documents, and keeps the value of a field of the record that it turned last."""

    reader: RecordReader
    field: str
    value: str | None = None
    """None before the first record: plain text has no records."""
    found: bool = False
    """Whether any record had the field."""
    names: str = ""
    """The names of the fields of the first record, for error messages."""

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys((*self.reader.fields, self.field)))

    def check(self, record: object, where: str) -> None:
        self.reader.check(record, where)

    def join(self, record: object, where: str) -> Document | None:
        document = self.reader.join(record, where)
        self.value = self._value(record, where)
        return document

    def _value(self, record: object, where: str) -> str:
        if not self.names and isinstance(record, dict):
            self.names = ", ".join(map(str, record))
        try:
            found = field_value(record, self.field, where, "by")
        except StudyError:
            return NO_VALUE
        self.found = True
        if found is None or found == "":
            return NO_VALUE
        if isinstance(found, bool):
            return str(found).lower()
        if not isinstance(found, str | int):
            raise StudyError(
                f"{where}: field {self.field!r} is of type {type(found).__name__}, expected text or a whole number; correct "
                "`by:` in the corpus, or fix the record"
            )
        text = str(found)
        if len(text) > LONGEST or not text.isprintable():
            raise StudyError(
                f"{where}: field {self.field!r} is {shortened(text)!r}, expected up to {LONGEST} visible characters; name a "
                "field with short values as `by:`"
            )
        return text
