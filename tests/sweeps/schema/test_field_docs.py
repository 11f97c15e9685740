"""Every field of a study, a search and a site profile is documented: the field reference is generated from the docstrings."""

import ast
import inspect
import itertools
import textwrap

import pytest

from retain.sweeps.schema import corpora, execution, models, search_space, sites, stages, study
from retain.sweeps.schema.linear import study as linear
from retain.sweeps.schema.section import Section

SECTIONS = [
    section
    for module in (study, models, corpora, stages, execution, search_space, linear, sites)
    for section in vars(module).values()
    if inspect.isclass(section) and issubclass(section, Section) and section.__module__ == module.__name__
]


def undocumented(section: type[Section]) -> list[str]:
    """The fields that a section defines without a docstring below them."""
    (body,) = (
        node.body for node in ast.parse(textwrap.dedent(inspect.getsource(section))).body if hasattr(node, "body")
    )
    documented = {
        node.target.id
        for node, below in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }
    return [name for name in section.model_fields if name in section.__annotations__ and name not in documented]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_section_and_every_field_has_a_docstring(section: type[Section]) -> None:
    assert section.__doc__
    assert undocumented(section) == []
