"""From a study's file and overrides to a checked Study; every mistake is one sentence with file, field and cure."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import Option, case_options, get_field, grid_values, is_axis, refuse_double, set_field
from retain.sweeps.schema.linear import LinearStudy, is_linear
from retain.sweeps.schema.search_space import Search, read_search
from retain.sweeps.schema.study import Study
from retain.sweeps.schema.validation_messages import first_sentence

STUDIES = Path(__file__).parents[1] / "studies"
AnyStudy = Study | LinearStudy


@dataclass(frozen=True)
class StudyFile:
    """A study, where it came from, and its axes."""

    path: Path
    study: AnyStudy
    axes: dict[str, list[Any]]
    """Those of the grid: each a dotted path with its checked values."""
    cases: dict[str, list[Option]] = field(default_factory=dict)
    """The axes of cases, each with its options."""
    search: Search | None = None
    """The space that `retain search` looks through."""

    @property
    def dimensions(self) -> list[list[Option]]:
        """The options of every axis, cases before the grid: a trial takes one of each."""
        grid = [[Option({axis: value}, {axis: value}) for value in values] for axis, values in self.axes.items()]
        return [*self.cases.values(), *grid]

    @property
    def labels(self) -> list[str]:
        """The names under which a table shows a trial's axes, in order."""
        return list({name: None for options in self.dimensions for option in options for name in option.labels})

    def values(self, path: str) -> list[Any]:
        """All values that a field has over the trials, its own where no axis sets it."""
        found = list(self.axes.get(path, []))
        for options in self.cases.values():
            if any(path in option.fields for option in options):
                found = [option.fields.get(path, get_field(self.study, path)) for option in options]
        distinct = [value for index, value in enumerate(found) if value not in found[:index]]
        return distinct or [get_field(self.study, path)]

    @property
    def folder(self) -> Path:
        """What relative paths in the study are relative to."""
        return self.path.parent


class _Loader(yaml.SafeLoader):
    pass


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    # `<<: *anchor` brings in fields that those beside it may replace; it is no field of its own.
    names = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    if repeated := {str(name) for name in names if names.count(name) > 1}:
        raise yaml.constructor.ConstructorError(
            None, None, f"{', '.join(sorted(repeated))} is given twice", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def read_study(name: str, overrides: Sequence[str] = ()) -> StudyFile:
    """The study of this path or, among sweeps/studies, of this name, with overrides `path=value` applied.

    An override with a list makes its path an axis of the grid; one with a single value takes it off the grid.
    Raises StudyError.
    """
    path = find_study(name)
    raw = _load(path)
    for override in overrides:
        _apply(raw, override)
    return check_study(raw, path)


def find_study(name: str) -> Path:
    """The file of a study given by its path or by its name in sweeps/studies."""
    known = {file.stem: file for file in sorted(STUDIES.glob("*.yaml"))}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name).resolve()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the studies are {', '.join(known)}"
    raise StudyError(f"{name}: no such study file, and no such study in sweeps/studies; {hint}")


def is_study(name: str) -> bool:
    """Whether this is a study's name or the path of a file."""
    return (STUDIES / f"{name}.yaml").is_file() or Path(name).is_file()


def check_study(raw: dict[str, Any], path: Path) -> StudyFile:
    """A study and its axes from the plain mapping that a study file holds."""
    if not isinstance(raw.get("search", {}), dict):
        raise StudyError(
            f"{path.name}: search: must be a mapping with axes; write `search: {{axes: {{field: [a, b]}}}}`"
        )
    schema: type[AnyStudy] = LinearStudy if is_linear(raw) else Study
    try:
        study = schema.model_validate(raw)
    except ValidationError as error:
        raise StudyError(f"{path.name}: {first_sentence(error, schema)}") from None
    cases = {
        name: case_options(raw, name, options, schema, f"{path.name}: cases.{name}")
        for name, options in study.cases.items()
    }
    grid = {
        axis: grid_values(raw, axis, values, schema, f"{path.name}: grid.{axis}") for axis, values in study.grid.items()
    }
    refuse_double(cases, grid, path.name)
    search = read_search(raw, schema, path.name) if study.search else None
    return StudyFile(path, study, grid, cases, search)


def check_together(study: AnyStudy, name: str) -> None:
    """Check a section whose fields were put in place one by one. Raises StudyError."""
    section = getattr(study, name)
    try:
        type(section).model_validate(section.model_dump())
    except ValidationError as error:
        raise StudyError(f"{name}: {first_sentence(error, type(section))}") from None


def load_yaml(path: Path) -> Any:
    """What a YAML file holds; a name given twice is refused. Raises StudyError."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path.name}: not YAML: {' '.join(str(error).split())}") from None


def _load(path: Path) -> dict[str, Any]:
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise StudyError(f"{path.name}: a study is a mapping of fields; this file holds {type(raw).__name__}")
    for part, example in (("grid", "axis: [a, b]"), ("cases", "axis: {a: {field: value}}")):
        if not isinstance(raw.setdefault(part, {}), dict):
            raise StudyError(f"{path.name}: {part}: must be a mapping of axes; write `{example}`")
    raw.setdefault("study", path.stem)
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    field, separator, text = override.partition("=")
    if not separator or not field:
        raise StudyError(f"{override!r}: an override is written path=value, for instance pretrain.exposure=0.5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise StudyError(f"{override!r}: the value is not YAML; quote it") from None
    if field in raw["cases"]:
        raw["cases"] = raw["cases"] | {field: _chosen(raw["cases"][field], value, override)}
        return
    grid = raw["grid"]
    if is_axis(field, value) and field != "search" and not field.startswith(("corpora.", "grid.", "search.")):
        raw["grid"] = grid | {field: value}
        return
    raw["grid"] = {axis: values for axis, values in grid.items() if axis != field}
    if field.startswith("grid."):
        raw["grid"] = raw["grid"] | {field.removeprefix("grid."): value}
    else:
        set_field(raw, field, value, repr(override))


def _chosen(cases: Any, names: Any, override: str) -> dict[str, Any]:
    """The named ones of an axis's cases."""
    wanted = names if isinstance(names, list) else [names]
    if not isinstance(cases, dict) or not wanted or (unknown := [name for name in wanted if name not in cases]):
        raise StudyError(f"{override!r}: no case {', '.join(map(str, unknown))}; the cases are {', '.join(cases)}")
    return {name: cases[name] for name in wanted}
