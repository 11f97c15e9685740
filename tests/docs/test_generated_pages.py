"""The generated pages of docs/ are those that the code would generate now."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from retain.sweeps.reference.sections import field_docs
from retain.sweeps.schema.section import Section
from tools.api_reference import RETURNED
from tools.field_reference import TITLES, field_reference
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


def dataclasses_in(annotation: Any) -> Iterator[type]:
    if is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from dataclasses_in(part)


@pytest.mark.parametrize("owner", RETURNED, ids=lambda owner: owner.__name__)
def test_the_api_reference_explains_every_type_that_its_fields_have(owner: type) -> None:
    named = {one for annotation in get_type_hints(owner).values() for one in dataclasses_in(annotation)}
    assert named <= set(RETURNED)


@pytest.mark.parametrize("section", TITLES, ids=lambda section: section.__name__)
def test_a_section_that_the_field_reference_leaves_out_is_an_error(
    section: type[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TITLES, section)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"PARTS lacks {section.__name__}"):
        field_reference()


def test_a_field_without_a_docstring_is_an_error() -> None:
    with pytest.raises(ValueError, match="Undocumented: second has no docstring"):
        field_docs(Undocumented)
