"""The axes of a study: those of its grid, each over one field, and its cases, which set several fields at once."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.validation_messages import first_sentence

FIXED = ("study", "tokenizer", "corpora", "cases", "grid", "search", "execution")
"""Parts of a study that cannot be an axis."""

Raw = dict[str, Any]
Schema = type[BaseModel]


@dataclass(frozen=True, slots=True)
class Option:
    """One value of an axis."""

    labels: dict[str, Any]
    """What a table shows of it: for a case, its name and what varies within it."""
    fields: dict[str, Any]
    """The checked values of the fields that it sets, by dotted path."""


def grid_values(raw: Raw, axis: str, values: list[Any], schema: Schema, where: str) -> list[Any]:
    """The values of an axis of the grid as the schema reads them, each tried in its place. Raises StudyError."""
    _refuse_fixed(axis, where)
    if not values:
        raise StudyError(f"{where}: an axis needs at least one value")
    checked: list[Any] = []
    for value in values:
        (read,) = _tried(raw, {axis: value}, schema, where).values()
        if read in checked:
            raise StudyError(f"{where}: {read} is listed twice; each value of an axis makes trials of its own")
        checked.append(read)
    return checked


def case_options(raw: Raw, name: str, cases: Mapping[str, Any], schema: Schema, where: str) -> list[Option]:
    """The options of an axis of cases: each case once, or once for each point of the lists in it. Raises StudyError."""
    if not cases:
        raise StudyError(f"{where}: an axis needs at least one case; write `{name}: {{a: {{field: value}}}}`")
    options = []
    for case, settings in cases.items():
        here = f"{where}.{case}"
        if not isinstance(settings, dict) or not settings:
            raise StudyError(f"{here}: a case is a mapping of fields to their values, such as pretrain.exposure: 1")
        varied = {
            path: _distinct(values, f"{here}.{path}") for path, values in settings.items() if is_axis(path, values)
        }
        for path in settings:
            _refuse_fixed(path, here)
        for point in itertools.product(*varied.values()):
            fields = _tried(raw, settings | dict(zip(varied, point, strict=True)), schema, here)
            options.append(Option({name: case} | {path: fields[path] for path in varied}, fields))
    return options


def refuse_double(cases: Mapping[str, list[Option]], grid: Mapping[str, Any], where: str) -> None:
    """Raise StudyError where two axes set the same field, or one sets a section and another a field of it."""
    setters: dict[str, str] = {}
    paths = {f"cases.{name}": {path for option in options for path in option.fields} for name, options in cases.items()}
    for setter, fields in [*paths.items(), *((f"grid.{axis}", {axis}) for axis in grid)]:
        for path in fields:
            for other, before in setters.items():
                if setter != before and (f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")):
                    raise StudyError(f"{where}: {path} is set by {before} and by {setter}; leave it to one of them")
        setters |= dict.fromkeys(fields, setter)


def set_field(raw: Raw, path: str, value: Any, where: str) -> None:
    """Put a plain value at a dotted path, copying the mappings above it. Raises StudyError."""
    *parents, last = path.split(".")
    place = raw
    for name in parents:
        inner = place.get(name)
        if isinstance(inner, str) and name == "model":
            inner = {"preset": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise StudyError(f"{where}: {name} is not a mapping, so it has no field {last}")
        place[name] = place = dict(inner)
    place[last] = value


def get_field(study: BaseModel, path: str) -> Any:
    """The value of a dotted path; None in a section that the study leaves out."""
    value: Any = study
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value


def _tried(raw: Raw, settings: Mapping[str, Any], schema: Schema, where: str) -> dict[str, Any]:
    """Settings as the schema reads them, all put in place together."""
    trial = {name: part for name, part in raw.items() if name not in ("grid", "cases")}
    for path, value in settings.items():
        set_field(trial, path, value, where)
    try:
        study = schema.model_validate(trial)
    except ValidationError as error:
        raise StudyError(f"{where}: {first_sentence(error, schema)}") from None
    return {path: get_field(study, path) for path in settings}


def _refuse_fixed(path: str, where: str) -> None:
    section = path.split(".")[0]
    if section in FIXED:
        raise StudyError(f"{where}: {section} cannot be an axis; make a second study file")


def is_axis(path: str, value: Any) -> bool:
    """Whether this is a list of values that a field takes one by one, and not one value that is a list."""
    if not isinstance(value, list) or path.endswith((".betas", ".setup", ".targets")):
        return False
    return not (path == "pretrain.exposure_schedule" and all(isinstance(part, int | float) for part in value))


def _distinct(values: list[Any], where: str) -> list[Any]:
    if not values:
        raise StudyError(f"{where}: a list needs at least one value")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise StudyError(f"{where}: {value} is listed twice; each value makes trials of its own")
    return values
