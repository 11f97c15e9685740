"""The fields of a section of a study with their meaning, type and default, as the docstrings and types of the schema say."""

import ast
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from retain.sweeps.base.units import format_size, parse_size
from retain.sweeps.schema.section import TOO_LARGE, Loss, Section

BOUNDS = ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt"))


def attribute_docs(owner: type) -> dict[str, tuple[str, str]]:
    """The annotated attributes of a class body, in order: annotation and docstring, which is empty if there is none."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: (ast.unparse(node.annotation), _text(below))
        for node, below in itertools.pairwise([*definition.body, ast.Pass()])
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _text(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def field_docs(section: type[Section]) -> dict[str, str]:
    """The docstrings of the fields that a section defines itself, in order. Raises ValueError for a field without one."""
    docs = {name: doc for name, (_, doc) in attribute_docs(section).items() if name in section.model_fields}
    if missing := [name for name, doc in docs.items() if not doc]:
        raise ValueError(f"{section.__module__}.{section.__name__}: {missing[0]} has no docstring; write one below it")
    return docs


@functools.cache
def all_field_docs(section: type[Section]) -> dict[str, str]:
    """The docstrings of all fields of a section, also of those that it inherits, in the order of the fields."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if issubclass(owner, Section) and owner is not Section:
            found |= field_docs(owner)
    return {name: " ".join(found.get(name, "").split()) for name in section.model_fields}


def default_text(field: FieldInfo) -> str:
    """The default of a field as a study file would write it; `-` if the meaning describes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "-"
    if isinstance(value, Section):
        given = value.model_dump(exclude_defaults=True, exclude_none=True)
        return yaml_value(next(iter(given.values()))) if given else ""
    is_count = isinstance(value, int) and not isinstance(value, bool) and not is_size(field.metadata)
    return str(value) if is_count else yaml_value(value)


def section_name(section: type[Section]) -> str:
    """What the terminal says of a field that is a section."""
    return "mapping"


def type_words(
    annotation: Any, metadata: Sequence[Any] = (), name: Callable[[type[Section]], str] = section_name
) -> str:
    """A type in words. name: how a section is named."""
    if annotation == Loss:
        return "loss"
    if is_size(metadata):
        return "size"
    if isinstance(annotation, FieldInfo):
        return type_words(annotation.annotation, annotation.metadata, name)
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return type_words(annotation.__origin__, flat(annotation.__metadata__), name)
    if origin is Literal:
        return " or ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_words(one, name=name) for one in inner if one is not NoneType)
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {type_words(inner[0], name=name)}"
    if origin is tuple:
        return f"[{', '.join(type_words(one, name=name) for one in inner)}]"
    if origin is dict:
        return f"mapping of {type_words(inner[0], name=name)} to {type_words(inner[1], name=name)}"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return name(annotation)
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return words.get(annotation, "any value") + _bounds(metadata)


def is_size(metadata: Sequence[Any]) -> bool:
    """Whether the metadata of a type are those of a number of tokens, such as 200k."""
    return any(isinstance(one, BeforeValidator) and one.func is parse_size for one in metadata)


def flat(metadata: Sequence[Any]) -> list[Any]:
    """The metadata of an annotation, with that inside pydantic's Field in its place."""
    return [each for one in metadata for each in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _bounds(metadata: Sequence[Any]) -> str:
    """The bounds of a number, such as ` ≥ 0, < 1`. Bounds that only a computer would reach are left out."""
    found = []
    for one in metadata:
        for kind, sign, name in BOUNDS:
            if isinstance(one, kind) and (bound := getattr(one, name)) < TOO_LARGE:
                found.append(f"{sign} {bound:g}")
    return f" {', '.join(found)}".rstrip()


def yaml_value(value: Any) -> str:
    """A value as in a study file: lists in brackets, lower-case booleans, short numbers."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(yaml_value(one) for one in value)}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, bool | dict) else str(value)
    return format_size(value)
