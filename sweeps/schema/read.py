"""Read a study file with overrides into a checked study. Every error is one sentence with file, field and cure."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import Option, case_options, check_disjoint, get_field, grid_values, is_axis, set_field
from retain.sweeps.schema.linear import LinearStudy, is_linear
from retain.sweeps.schema.search_space import SearchSpace, read_search
from retain.sweeps.schema.study import Study
from retain.sweeps.schema.validation_messages import validate

STUDIES = Path(__file__).parents[1] / "studies"
AnyStudy = Study | LinearStudy


@dataclass(frozen=True)
class StudyFile:
    """A study with its file and its axes."""

    path: Path
    """The study file."""
    study: AnyStudy
    axes: dict[str, list[Any]]
    """The axes of the grid: dotted paths with their checked values."""
    cases: dict[str, list[Option]] = field(default_factory=dict)
    """The axes of cases, by name, with their options."""
    search: SearchSpace | None = None
    """The space that `retain search` searches; None if the study has none."""

    @property
    def dimensions(self) -> list[list[Option]]:
        """The options of every axis, first of cases, then of the grid. A trial takes one option of each axis."""
        grid = [[Option({axis: value}, {axis: value}) for value in values] for axis, values in self.axes.items()]
        return [*self.cases.values(), *grid]

    @property
    def labels(self) -> list[str]:
        """The names of the columns, in order, in which tables show the axes of a trial."""
        return list({name: None for options in self.dimensions for option in options for name in option.labels})

    def values(self, path: str) -> list[Any]:
        """The distinct values of a field over all trials: its own value if no axis sets the field."""
        found = list(self.axes.get(path, []))
        for options in self.cases.values():
            if any(path in option.fields for option in options):
                found = [option.fields.get(path, get_field(self.study, path)) for option in options]
        distinct = [value for index, value in enumerate(found) if value not in found[:index]]
        return distinct or [get_field(self.study, path)]

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the study start from."""
        return self.path.parent


class _Loader(yaml.SafeLoader):
    pass


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    # `<<: *anchor` merges in fields that fields beside it may replace. `<<` itself is not a field.
    names = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    if repeated := {str(name) for name in names if names.count(name) > 1}:
        raise yaml.constructor.ConstructorError(
            None, None, f"{', '.join(sorted(repeated))} appears twice", node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def read_study(name: str, overrides: Sequence[str] = ()) -> StudyFile:
    """Read the study with this path, or with this name in sweeps/studies, and apply overrides of the form `path=value`.

    An override with a list makes the path an axis of the grid; an override with a single value removes it from the grid.
    Raises StudyError.
    """
    path = find_study(name)
    raw = _load(path)
    for override in overrides:
        _apply(raw, override)
    return check_study(raw, path)


def find_study(name: str) -> Path:
    """The file of the study with this path, or with this name in sweeps/studies. Raises StudyError if there is none."""
    known = {file.stem: file for file in sorted(STUDIES.glob("*.yaml"))}
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name).resolve()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the studies are {', '.join(known)}"
    raise StudyError(f"{name}: not found, neither as a file nor in sweeps/studies; {hint}")


def is_study(name: str) -> bool:
    """Whether this is the name of a study in sweeps/studies or the path of a file."""
    return (STUDIES / f"{name}.yaml").is_file() or Path(name).is_file()


def check_study(raw: dict[str, Any], path: Path) -> StudyFile:
    """Validate the plain mapping of a study file, and each value of its axes. Raises StudyError."""
    if not isinstance(raw.get("search", {}), dict):
        raise StudyError(
            f"{path.name}: search: expected a mapping with axes; write `search: {{axes: {{field: [a, b]}}}}`"
        )
    schema: type[AnyStudy] = LinearStudy if is_linear(raw) else Study
    study = validate(schema, raw, f"{path.name}: ")
    cases = {
        name: case_options(raw, name, options, schema, f"{path.name}: cases.{name}")
        for name, options in study.cases.items()
    }
    grid = {
        axis: grid_values(raw, axis, values, schema, f"{path.name}: grid.{axis}") for axis, values in study.grid.items()
    }
    check_disjoint(cases, grid, path.name)
    search = read_search(raw, schema, path.name) if study.search else None
    return StudyFile(path, study, grid, cases, search)


def check_section(study: AnyStudy, name: str) -> None:
    """Check a section whose fields were set one by one. Raises StudyError if they are invalid together."""
    section = getattr(study, name)
    validate(type(section), section.model_dump(), f"{name}: ")


def load_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises StudyError if the file cannot be read, or if a name appears twice in a mapping."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot read the file: {error}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{path.name}: invalid YAML: {' '.join(str(error).split())}") from None


def _load(path: Path) -> dict[str, Any]:
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise StudyError(f"{path.name}: expected a mapping of fields, but the file holds {type(raw).__name__}")
    for part, example in (("grid", "axis: [a, b]"), ("cases", "axis: {a: {field: value}}")):
        if not isinstance(raw.setdefault(part, {}), dict):
            raise StudyError(f"{path.name}: {part}: expected a mapping of axes; write `{example}`")
    raw.setdefault("study", path.stem)
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    field, separator, text = override.partition("=")
    if not separator or not field:
        raise StudyError(f"{override!r}: invalid override; write path=value, for instance pretrain.exposure=0.5")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise StudyError(f"{override!r}: the value is invalid YAML; quote it") from None
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
    """The cases of an axis that an override names. Raises StudyError if it names none, or an unknown one."""
    wanted = names if isinstance(names, list) else [names]
    known = list(cases) if isinstance(cases, dict) else []
    if not wanted:
        raise StudyError(f"{override!r}: name at least one case; the cases are {', '.join(map(str, known))}")
    if unknown := [name for name in wanted if name not in known]:
        raise StudyError(
            f"{override!r}: unknown case {', '.join(map(str, unknown))}; the cases are {', '.join(map(str, known))}"
        )
    return {name: cases[name] for name in wanted}
