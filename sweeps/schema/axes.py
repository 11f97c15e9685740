"""The axes of a study: an axis of the grid varies one field, and an axis of cases sets several fields at once."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.section import LOSSES, Grid, shown_value
from retain.sweeps.schema.validation_messages import InvalidError, validate

NOT_AXES = ("study", "stages", "tokenizer", "corpora", "cases", "grid", "search", "execution")
"""Sections of a study that cannot be an axis."""

COLUMNS = (*LOSSES, "tokens")
"""The columns that the results of a trial have beside its axes."""
SEEDS = ("seed", "subset_seed")
"""The last names of axes whose values are repetitions."""

Raw = dict[str, Any]
"""The plain mapping of a study file, before validation."""
Schema = type[BaseModel]
Base = TypeVar("Base", bound=BaseModel)
Settings = Mapping[str, Any]
"""The plain values that an option of an axis sets, by dotted path."""


@dataclass(frozen=True, slots=True)
class Option:
    """One value of an axis."""

    labels: dict[str, Any]
    """What tables show: the axis with its value, or with the name of the case and the values that vary within the case."""
    fields: dict[str, Any]
    """The checked values that this option sets, by dotted path."""


class _Axes(BaseModel):
    """The axes of a study as they are written."""

    cases: dict[str, dict[str, dict[str, Any]]] = {}
    grid: Grid = {}


def read_base(raw: Raw, schema: type[Base], before: str) -> tuple[Raw, Base]:
    """The plain mapping of a study and the study without its axes; if it needs them, with the first values of some fields.

    They are the fields that every point sets, which so need no value of their own, and none that is valid without the others.
    before: what messages begin with. Raises StudyError.
    """
    try:
        return raw, validate(schema, raw, before)
    except StudyError:
        with contextlib.suppress(StudyError):
            first = _with_first_values(raw)
            return first, validate(schema, first, before)
        raise


def _with_first_values(raw: Raw) -> Raw:
    """The plain mapping of a study with the first values of the fields that every point sets. Raises StudyError."""
    axes = validate(_Axes, {name: raw[name] for name in _Axes.model_fields if name in raw}, "")
    own: list[list[Settings]] = [list(cases.values()) for cases in axes.cases.values()]
    own += [grid_settings(axis, values) for axis, values in axes.grid.items()]
    firsts = []
    for options in filter(None, own):
        first = next(_points(options[0]), {})
        # A field that only some cases set keeps the study's value in the others.
        firsts.append({path: value for path, value in first.items() if all(path in option for option in options)})
    return raw | _with_settings(raw, firsts, "")


def read_axes(
    raw: Raw, cases: Mapping[str, Mapping[str, Settings]], grid: Mapping[str, list[Any]], schema: Schema, file: str
) -> tuple[dict[str, list[Option]], dict[str, list[Any]]]:
    """The options of the axes of cases, and the checked values of those of the grid. Raises StudyError."""
    plain = [[point for settings in options.values() for point in _points(settings)] for options in cases.values()]
    plain += [grid_settings(axis, values) for axis, values in grid.items()]

    def beside(number: int) -> list[list[Settings]]:
        return [*plain[:number], *plain[number + 1 :]]

    options = {
        name: case_options(raw, name, own, schema, f"{file}: cases.{name}", beside(number))
        for number, (name, own) in enumerate(cases.items())
    }
    values = {
        axis: grid_values(raw, axis, own, schema, f"{file}: grid.{axis}", beside(number))
        for number, (axis, own) in enumerate(grid.items(), len(cases))
    }
    check_disjoint(options, values, file)
    return options, values


def grid_settings(axis: str, values: Iterable[Any]) -> list[Settings]:
    """The settings of each value of a grid axis."""
    return [{axis: value} for value in values]


def grid_values(
    raw: Raw, axis: str, values: list[Any], schema: Schema, where: str, beside: Sequence[Sequence[Settings]] = ()
) -> list[Any]:
    """The checked values of a grid axis.

    Each value is validated as part of the whole study. One that is invalid in the study itself is valid if it is with an option
    of each axis of the same section, as all points are checked when a study is expanded. where: the file and field that
    messages begin with; beside: the options of the other axes. Raises StudyError.
    """
    _check_may_vary(axis, where)
    settings = grid_settings(axis, values)
    return _check_distinct([_validated(raw, one, schema, where, beside)[axis] for one in settings], where)


def case_options(
    raw: Raw,
    name: str,
    cases: Mapping[str, Any],
    schema: Schema,
    where: str,
    beside: Sequence[Sequence[Settings]] = (),
) -> list[Option]:
    """The options of an axis of cases: one per case, or one per point of the grid that the lists in a case span.

    They are validated as in `grid_values`. Raises StudyError.
    """
    if not cases:
        raise StudyError(f"{where}: an axis needs at least one case; write `{name}: {{case: {{field: value}}}}`")
    if name in COLUMNS:
        raise StudyError(f"{where}: results have a column {name} of their own; rename the axis")
    options = []
    for case, settings in cases.items():
        here = f"{where}.{case}"
        if not (name.strip() and name.isprintable() and case.strip() and case.isprintable()):
            raise StudyError(f"{shown_value(here)}: an axis and a case need names of visible letters; rename them")
        if name.rpartition(".")[2] in SEEDS and not case.isdecimal():
            raise StudyError(
                f"{here}: the values of {name} are whole numbers, which tell repetitions apart; rename the axis"
            )
        if not isinstance(settings, dict) or not settings:
            raise StudyError(f"{here}: a case must map fields to values, such as pretrain.exposure: 1")
        varied = _lists_in(settings)
        for path, values in varied.items():
            _check_distinct(values, f"{here}.{path}")
        for number, path in enumerate(settings):
            _check_may_vary(path, here)
            if lost := [name for name in list(settings)[:number] if name.startswith(f"{path}.")]:
                raise StudyError(f"{here}: {path} replaces {lost[0]}, which is set before it; write {path} first")
        for point in _points(settings):
            fields = _validated(raw, point, schema, here, beside)
            options.append(Option({name: case} | {path: fields[path] for path in varied}, fields))
    return options


def check_disjoint(cases: Mapping[str, list[Option]], grid: Mapping[str, Any], where: str) -> None:
    """Raise StudyError if two axes set the same field, or if one sets a section and another one a field of it."""
    setters: dict[str, str] = {}
    paths = {f"cases.{name}": {path for option in options for path in option.fields} for name, options in cases.items()}
    for setter, fields in [*paths.items(), *((f"grid.{axis}", {axis}) for axis in grid)]:
        for path in fields:
            for other, before in setters.items():
                if setter != before and (f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")):
                    raise StudyError(f"{where}: {path} is set by {before} and by {setter}; remove one of them")
        setters |= dict.fromkeys(fields, setter)


def set_field(raw: Raw, path: str, value: Any, where: str) -> None:
    """Set a plain value at a dotted path in `raw`. The mappings on the path are copied. Raises StudyError."""
    *parents, last = path.split(".")
    place = raw
    for depth, name in enumerate(parents, 1):
        inner = place.get(name)
        if isinstance(inner, str) and name == "model":
            inner = {"preset": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            whole = ".".join(parents[:depth])
            raise StudyError(
                f"{where}: {name} is not a mapping, so it has no field {last}; give a value for all of {whole}"
            )
        place[name] = place = dict(inner)
    place[last] = value


def get_field(study: BaseModel, path: str) -> Any:
    """The value at a dotted path; None if the study leaves out its section, or its chain has no such stage."""
    value: Any = study
    for name in path.split("."):
        if value is not None:
            value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def _lists_in(settings: Settings) -> dict[str, list[Any]]:
    """The fields of a case that have several values in it."""
    return {path: values for path, values in settings.items() if is_axis(path, values)}


def _points(settings: Settings) -> Iterator[Settings]:
    """Yield every point of the grid that the lists in a case span."""
    varied = _lists_in(settings)
    for point in itertools.product(*varied.values()):
        yield {**settings, **dict(zip(varied, point, strict=True))}


def _validated(
    raw: Raw, settings: Settings, schema: Schema, where: str, beside: Sequence[Sequence[Settings]] = ()
) -> dict[str, Any]:
    """The checked values of settings, by dotted path, after validating the study with all of them set, as in `grid_values`."""
    trial = _with_settings(raw, [settings], where)
    try:
        study = validate(schema, trial, "")
    except InvalidError as error:
        hopeless = any(f"{field}.".startswith(f"{path}.") for path in settings for field in error.alone)
        valid = None if hopeless else next(_valid_points(raw, settings, schema, beside), None)
        if valid is None:
            raise StudyError(_named_once(where, settings, _of_a_section(settings, str(error)))) from None
        study = valid
    return {path: get_field(study, path) for path in settings}


def _valid_points(
    raw: Raw, settings: Settings, schema: Schema, beside: Sequence[Sequence[Settings]]
) -> Iterator[BaseModel]:
    """Yield the study with these settings and an option of each axis of the same section, at every point where it is valid."""

    def sections(options: Iterable[Settings]) -> set[str]:
        return {path.partition(".")[0] for option in options for path in option}

    related = [options for options in beside if sections(options) & sections([settings])]
    for others in itertools.product(*related) if related else ():
        with contextlib.suppress(StudyError):
            yield validate(schema, _with_settings(raw, [*others, settings], ""), "")


def _with_settings(raw: Raw, settings: Iterable[Settings], where: str) -> Raw:
    """The plain mapping of a study without axes, with settings in their order. Raises StudyError."""
    trial = {name: part for name, part in raw.items() if name not in ("grid", "cases")}
    for one in settings:
        for path, value in one.items():
            set_field(trial, path, value, where)
    return trial


def _of_a_section(settings: Mapping[str, Any], problem: str) -> str:
    """The problem, with another cure if a mapping lacks required fields: it replaces the whole section, not single fields."""
    lacking, required, _ = problem.partition(": this field is required")
    for path, value in settings.items():
        if required and isinstance(value, dict) and value and lacking.startswith(f"{path}."):
            return (
                f"{path} stands for the whole section, which lacks {lacking.removeprefix(f'{path}.')}; add it, or set single "
                f"fields by their paths, as in {path}.{next(iter(value))}"
            )
    return problem


def _named_once(where: str, paths: Iterable[str], problem: str) -> str:
    """The place, then the problem; a path that both name is written once."""
    for path in paths:
        if where.endswith(path) and problem.startswith((f"{path}:", f"{path}.")):
            return where + problem.removeprefix(path)
    return f"{where}: {problem}"


def _check_may_vary(path: str, where: str) -> None:
    section = path.split(".")[0]
    if section in NOT_AXES:
        raise StudyError(f"{where}: {section} cannot be an axis; write a second study file")


LISTS = ("stages", "evaluate.corpora", "evaluate.at", ".betas", ".setup", ".targets", ".log")
"""The ends of the paths of fields whose value is a list."""


def is_axis(path: str, value: Any) -> bool:
    """Whether a list holds several values of a field, as opposed to one value that is itself a list."""
    if not isinstance(value, list):
        return False
    if path.endswith(LISTS):  # one value, unless each of its parts is one
        return bool(value) and all(isinstance(part, list) for part in value)
    if path.split(".")[1:-1] == ["mix"]:  # the components of one corpus, unless each value is a list of components
        return not all(isinstance(part, dict) for part in value)
    window = path == "pretrain.exposure_schedule" or path.endswith(".window")
    return not (window and all(isinstance(part, int | float) for part in value))


def _check_distinct(values: list[Any], where: str) -> list[Any]:
    if not values:
        raise StudyError(f"{where}: an axis needs at least one value")
    seen = set()
    for value in values:
        plain = value if isinstance(value, int | float | str) else repr(value)
        if plain in seen:
            raise StudyError(f"{where}: {shown_value(value)} is listed twice; remove one of them")
        seen.add(plain)
    return values


def is_section(schema: type[BaseModel], name: str) -> bool:
    """Whether a field of a schema is a section with fields of its own."""
    kind = schema.model_fields[name].annotation if name in schema.model_fields else None
    return any(hasattr(one, "model_fields") for one in (kind, *get_args(kind)))


def values_or_ends(axis: Any) -> list[Any]:
    """The values of an axis of a search as it is written: those of a list, or the ends of a range; none of anything else."""
    parts = axis.values() if isinstance(axis, Mapping) else [axis]
    return [value for part in parts if isinstance(part, list) for value in part]


def takes_whole_only(raw: dict[str, Any], path: str, fraction: float, schema: type[BaseModel]) -> bool:
    """Whether a field takes whole numbers only: it rejects this fraction and accepts the whole number above it."""

    def accepts(value: float) -> bool:
        try:
            grid_values(raw, path, [value], schema, "")
        except StudyError:
            return False
        return True

    return not accepts(fraction) and accepts(math.ceil(fraction))
