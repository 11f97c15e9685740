"""The generated pages of docs/ are those that the code would generate now."""

import pytest

from retain.sweeps.reference.sections import field_docs
from retain.sweeps.schema.section import Section
from tools.generated_pages import DOCS, GENERATED


class Undocumented(Section):
    """A section with a field that lacks a docstring."""

    first: int = 0
    """Documented."""
    second: int = 0


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_current(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    assert GENERATED[name](text) == text, "run `python -m tools.generated_pages`"


def test_a_field_without_a_docstring_is_an_error() -> None:
    with pytest.raises(ValueError, match="Undocumented: second has no docstring"):
        field_docs(Undocumented)
