"""A JSON schema of study files for editors: which fields there are, what they mean, which values they take.

It is lenient where a study may write a value in several ways: `retain plan` is what checks a study.
"""

import inspect
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator

from retain.sweeps.reference.paths import PLAIN, all_paths
from retain.sweeps.reference.sections import BOUNDS, all_field_docs, default_text, flat, is_size
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.section import TOO_LARGE, Section, read_number, read_whole
from retain.sweeps.schema.stages import FurtherStage
from retain.sweeps.schema.study import Study

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that editors' YAML servers read."""
PLAIN_TYPES: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
Schema = dict[str, Any]


def study_schema() -> Schema:
    """The schema of study files: of language models, and of the linear theory if `model` has `linear`."""
    definitions: dict[str, Schema] = {}
    study, linear = (_section(root, definitions) for root in (Study, LinearStudy))
    is_linear = {"properties": {"model": {"type": "object", "required": ["linear"]}}, "required": ["model"]}
    return {
        "$schema": DRAFT,
        "title": "A study of Retain",
        "if": is_linear,
        "then": linear,
        "else": study,
        "definitions": definitions,
    }


def _section(section: type[Section], definitions: dict[str, Schema]) -> Schema:
    """A reference to the definition of a section, which is added to the definitions."""
    name = section.__name__
    if name not in definitions:
        definitions[name] = {}  # so that a section may hold itself
        fields = {field: _field(section, field, definitions) for field in section.model_fields}
        if section in (Study, LinearStudy):
            fields |= {field: _section(plain, definitions) for field, plain in PLAIN.items() if field in fields}
            fields["grid"] |= {"properties": _axes(section)}
        definitions[name] = {
            "type": "object",
            "description": " ".join((inspect.getdoc(section) or "").split()),
            "properties": fields,
            # Further stages have names of the user's.
            "additionalProperties": _section(FurtherStage, definitions) if section is Study else False,
        }
    reference: Schema = {"$ref": f"#/definitions/{name}"}
    return {"anyOf": [reference, {"not": {"type": "object"}}]} if _is_read_otherwise(section) else reference


def _field(section: type[Section], name: str, definitions: dict[str, Schema]) -> Schema:
    field = section.model_fields[name]
    default = default_text(field)
    doc = all_field_docs(section)[name] + (f" Default: {default}." if default not in ("", "-", "required") else "")
    schema = _schema(field.annotation, field.metadata, definitions)
    # Beside a reference, editors ignore other words of this draft.
    return {"description": doc, "allOf": [schema]} if "$ref" in schema else {**schema, "description": doc}


def _schema(annotation: Any, metadata: Sequence[Any], definitions: dict[str, Schema]) -> Schema:
    """The schema of a type; empty, so any value, for one that is read in a way of its own."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _schema(annotation.__origin__, [*flat(annotation.__metadata__), *metadata], definitions)
    readers = [one.func for one in metadata if isinstance(one, BeforeValidator)]
    if is_size(metadata):
        return {"type": ["integer", "number", "string"]}
    if any(reader not in (read_number, read_whole) for reader in readers):
        return {}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        some = [_schema(one, (), definitions) for one in inner]
        return {} if {} in some else {"anyOf": some}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], (), definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], (), definitions)}
    if annotation is NoneType:
        return {"type": "null"}
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return _section(annotation, definitions)
    if annotation not in PLAIN_TYPES:
        return {}
    if readers:  # numbers such as 5e-5 are text to some readers of YAML
        return {"type": ["number", "string"], **_bounds(metadata)}
    return {"type": PLAIN_TYPES[annotation], **_bounds(metadata)}


def _bounds(metadata: Sequence[Any]) -> Schema:
    return {
        LIMITS[name]: bound
        for one in metadata
        for kind, _, name in BOUNDS
        if isinstance(one, kind) and (bound := getattr(one, name)) < TOO_LARGE
    }


def _axes(root: type[Section]) -> dict[str, Schema]:
    """The paths that an axis of the grid may have, so that editors complete them."""
    return {path: {"description": field.meaning} for path, field in all_paths(root).items() if ".NAME" not in path}


def _is_read_otherwise(section: type[Section]) -> bool:
    """Whether a section also has a short form, such as the name of a preset."""
    validators = section.__pydantic_decorators__.model_validators.values()
    return any(validator.info.mode in ("before", "wrap") for validator in validators)
