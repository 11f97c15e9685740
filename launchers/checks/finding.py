"""One line of the doctor's report."""

from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"
"""note: good to know; missing: something essential, and the finding names the cure."""


@dataclass(frozen=True)
class Finding:
    """What the doctor found about one subject."""

    subject: str
    level: str
    """ok, note, or missing."""
    what: str
    """One sentence: what is there, what it means, the cure."""
