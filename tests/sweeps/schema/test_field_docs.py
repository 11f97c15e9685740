"""Every field of a study, a search and a site profile is documented: the field reference is generated from the docstrings."""

import inspect

import pytest

from retain.sweeps.reference.sections import field_docs
from retain.sweeps.schema import corpora, execution, models, search_space, sites, stages, study
from retain.sweeps.schema.linear import study as linear
from retain.sweeps.schema.section import Section

SECTIONS = [
    section
    for module in (study, models, corpora, stages, execution, search_space, linear, sites)
    for section in vars(module).values()
    if inspect.isclass(section) and issubclass(section, Section) and section.__module__ == module.__name__
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_and_every_field_has_a_docstring(section: type[Section]) -> None:
    assert section.__doc__
    assert all(field_docs(section).values())
