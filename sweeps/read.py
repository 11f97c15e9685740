"""From a study's file and overrides to a checked Study; every mistake is one sentence with file, field and cure."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sweeps.errors import StudyError
from sweeps.schema import Study

STUDIES = Path(__file__).parent / "studies"
FIXED = ("study", "tokenizer", "corpora", "grid", "search", "execution")
"""Parts of a study that cannot be an axis."""


@dataclass(frozen=True)
class StudyFile:
    """A study, where it came from, and its axes: each a dotted path with its checked values."""

    path: Path
    study: Study
    axes: dict[str, list[Any]]

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
    """A Study and its axes from the plain mapping that a study file holds."""
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(f"{path.name}: {first_sentence(error)}") from None
    axes = {axis: _axis(raw, axis, values, path) for axis, values in study.grid.items()}
    return StudyFile(path, study, axes)


def check_together(study: Study, name: str) -> None:
    """Check a section whose fields were put in place one by one. Raises StudyError."""
    section = getattr(study, name)
    try:
        type(section).model_validate(section.model_dump())
    except ValidationError as error:
        raise StudyError(f"{name}: {first_sentence(error)}") from None


def get_field(study: Study, axis: str) -> Any:
    """The value of a dotted path."""
    value: Any = study
    for name in axis.split("."):
        value = getattr(value, name)
    return value


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
    if not isinstance(raw.setdefault("grid", {}), dict):
        raise StudyError(f"{path.name}: grid: a grid is a mapping of axes to lists of values; write `axis: [a, b]`")
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
    grid = raw["grid"]
    if (
        isinstance(value, list)
        and not field.startswith(("corpora.", "grid."))
        and not field.endswith((".betas", ".setup"))
    ):
        raw["grid"] = grid | {field: value}
        return
    raw["grid"] = {axis: values for axis, values in grid.items() if axis != field}
    _set(raw, field, value, override)


def _set(raw: dict[str, Any], field: str, value: Any, where: str) -> None:
    *parents, last = [field.removeprefix("grid.")] if field.startswith("grid.") else field.split(".")
    place = raw["grid"] if field.startswith("grid.") else raw
    for name in parents:
        inner = place.get(name)
        if isinstance(inner, str) and name == "model":
            inner = {"preset": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise StudyError(f"{where!r}: {name} is not a mapping, so it has no field {last}")
        place[name] = place = dict(inner)
    place[last] = value


def _axis(raw: dict[str, Any], axis: str, values: list[Any], path: Path) -> list[Any]:
    """The values of an axis as the schema reads them, each tried in its place."""
    where = f"{path.name}: grid.{axis}"
    if axis.split(".")[0] in FIXED:
        raise StudyError(f"{where}: {axis.split('.')[0]} cannot be an axis; make a second study file")
    if not values:
        raise StudyError(f"{where}: an axis needs at least one value")
    checked: dict[Any, None] = {}
    for value in values:
        trial = {name: part for name, part in raw.items() if name != "grid"}
        _set(trial, axis, value, where)
        try:
            value = get_field(Study.model_validate(trial), axis)
        except ValidationError as error:
            raise StudyError(f"{where}: {first_sentence(error)}") from None
        if value in checked:
            raise StudyError(f"{where}: {value} is listed twice; each value of an axis makes trials of its own")
        checked[value] = None
    return list(checked)


def first_sentence(error: ValidationError, root: type[BaseModel] = Study) -> str:
    """pydantic's first complaint about a `root` as `field: what is wrong; the cure`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        section = root.model_fields if len(first["loc"]) == 1 else _fields_of(first["loc"], root)
        near = difflib.get_close_matches(str(first["loc"][-1]), section, n=1)
        cure = f"did you mean {near[0]}?" if near else f"the fields here are {', '.join(section)}"
        return f"{field}: unknown field; {cure}"
    if first["type"] == "missing":
        return f"{field}: this field must be given"
    given = "" if isinstance(first["input"], dict) or first["type"] == "value_error" else f" (it is {first['input']!r})"
    more = f"; {error.error_count() - 1} more like this" if error.error_count() > 1 else ""
    # A section's own check begins with the field that it is about.
    own = first["type"] == "value_error" and re.match(r"[a-z_.]+: ", message)
    return f"{field}{'.' if own else ': '}{message}{given}{more}" if field else f"{message}{more}"


def _fields_of(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """The fields of the section in which an unknown one was found."""
    model: Any = root
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else model
        inner = [item for item in (annotation, *getattr(annotation, "__args__", ())) if hasattr(item, "model_fields")]
        model = inner[0] if inner else model
    return list(model.model_fields)
