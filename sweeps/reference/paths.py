"""Dotted paths of the fields of a study, as on the command line, in `grid:` and in `cases:`, and what is at each."""

import difflib
import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from retain.sweeps.base.errors import StudyError
from retain.sweeps.reference.sections import all_field_docs, default_text, type_words
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.search_space import SearchBlock
from retain.sweeps.schema.section import Section
from retain.sweeps.schema.stages import FurtherStage
from retain.sweeps.schema.study import Study, is_stage_name
from retain.sweeps.schema.validation_messages import written_otherwise

ROOTS: tuple[type[Section], ...] = (Study, LinearStudy)
PLAIN: dict[str, type[Section]] = {"search": SearchBlock}
"""Fields of a study that the schema holds as plain mappings, because they are checked later, with their sections."""
ANY = "NAME"
"""Stands for a name that the study chooses, such as that of a corpus."""
TYPO = 0.8
"""An unknown name that is at least this similar to a known one (from 0 to 1, by difflib) counts as a typo."""


@dataclass(frozen=True)
class Field:
    """One field of a study."""

    path: str
    """Its dotted path."""
    type_text: str
    """Its type in words."""
    default: str
    """As a study file writes it; `required`, or `-` if the meaning describes it."""
    meaning: str
    """Its docstring."""
    sections: tuple[type[Section], ...]
    """The sections that its value may be, or that the values of its mapping are."""
    is_mapping: bool
    """Whether it maps names that the study chooses to such sections."""


def fields_of(section: type[Section], above: str = "") -> list[Field]:
    """The fields of a section. above: its dotted path; empty for a study."""
    found = []
    for name, doc in all_field_docs(section).items():
        field = section.model_fields[name]
        sections, is_mapping = _sections(field.annotation)
        if not above and name in PLAIN:
            sections, is_mapping = (PLAIN[name],), False
        path = f"{above}.{name}" if above else name
        words = type_words(field.annotation, field.metadata)
        found.append(Field(path, words, default_text(field) or "its defaults", doc, sections, is_mapping))
    return found


def find_fields(path: str = "") -> tuple[Field | None, list[Field]]:
    """The field with this path (None for the study itself) and the fields below it. Raises StudyError if there is none.

    The first name of a path may be that of a user's own stage, as in midtrain.lr.
    """
    if path.endswith((".yaml", ".yml")):
        raise StudyError(f"{path}: all studies have the same fields; name one, such as finetune.lr, and no file")
    known = sorted(all_paths())
    starts = [fields_of(root) for root in ROOTS]
    if stage := _further_stage(path, known):
        starts.append([stage])
    for fields in starts:
        found = _walk(fields, path)
        if found is not None:
            return found
    if stage:
        own = {field.path: field for field in _below(FurtherStage, "", ())}
        near = difflib.get_close_matches(path.partition(".")[2], own, n=1)
        hint = f"did you mean {stage.path}.{near[0]}?" if near else f"retain fields {stage.path} lists what it has"
        raise StudyError(f"{path}: a stage with a name of your own has no such field; {hint}")
    near = difflib.get_close_matches(path, known, n=1) or [one for one in known if one.endswith(f".{path}")][:1]
    hint = f"did you mean {near[0]}?" if near else "retain fields lists them"
    hint = written_otherwise(path.rpartition(".")[2]) or hint
    raise StudyError(f"{path}: a study has no such field; {hint}")


def all_paths(root: type[Section] = Study) -> dict[str, Field]:
    """Every field below a study by its path, with NAME for names that the study chooses."""
    return {field.path: field for field in _below(root, "", ())}


def _further_stage(path: str, known: Collection[str]) -> Field | None:
    """The user's own stage that a path begins with; None if its first name is a field, or looks like a typo of one."""
    name, _, below = path.partition(".")
    without_number = name.rstrip("0123456789")  # finetune2 is no typo of finetune
    is_typo = without_number not in known and bool(difflib.get_close_matches(name, known, n=1, cutoff=TYPO))
    is_inner_field = not below and any(one.endswith(f".{name}") for one in known)
    if name in known or is_typo or is_inner_field or not is_stage_name(name):
        return None
    return Field(name, "mapping", "-", " ".join((FurtherStage.__doc__ or "").split()), (FurtherStage,), False)


def _walk(inside: list[Field], path: str) -> tuple[Field | None, list[Field]] | None:
    here: Field | None = None
    names = path.split(".") if path else []
    while names:
        name = names.pop(0)
        here = next((field for field in inside if field.path.rpartition(".")[2] == name), None)
        if here is None:
            return None
        place = here.path
        if here.is_mapping and here.sections:
            place = f"{place}.{names.pop(0) if names else ANY}"
        inside = [field for section in here.sections for field in fields_of(section, place)]
    return here, inside


def _below(section: type[Section], above: str, within: tuple[type[Section], ...]) -> Iterator[Field]:
    for field in fields_of(section, above):
        yield field
        place = f"{field.path}.{ANY}" if field.is_mapping else field.path
        for inner in field.sections:
            if inner not in within:
                yield from _below(inner, place, (*within, section))


def _sections(annotation: Any) -> tuple[tuple[type[Section], ...], bool]:
    """The sections that a type may hold, and whether they are values of a mapping."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _sections(annotation.__origin__)
    if origin in (Union, UnionType):
        found = [_sections(one) for one in inner]
        return tuple(one for sections, _ in found for one in sections), any(mapping for _, mapping in found)
    if origin is dict:
        return _sections(inner[1])[0], bool(_sections(inner[1])[0])
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return (annotation,), False
    return (), False
