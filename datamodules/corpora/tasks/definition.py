"""Read the definition of a task of the lm-evaluation-harness, its YAML file and what that names, without the harness."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from retain.datamodules.corpora.find import expanded, find_files, shown
from retain.sweeps.base.errors import MissingResourceError, StudyError, os_reason
from retain.sweeps.schema.stages import Task

HARNESS = "lm_eval"
"""The package of the harness."""
NAME = re.compile(r"""^["']?(task|group|tag)["']?\s*:\s*["']?([^"'\s#\[{]+)["']?\s*(?:#.*)?$""", re.MULTILINE)
FILES = ("json", "csv", "parquet", "text", "arrow")
"""The readers of local files among the values of `dataset_path`."""
FUNCTION, FOLDER = "!function", "folder"
"""The mark of a function in a stored definition, and the folder of its module in the store."""
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
"""The harness's metrics for which lower is better, unless a task says otherwise."""
METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
"""The metrics of a task that names none, by its kind of output."""


@dataclass(frozen=True)
class Definition:
    """A task as its YAML file defines it."""

    config: dict[str, Any]
    """The fields of the file and of those that it includes. Functions are mappings with FUNCTION, and files of data are named
    as in `files`."""
    yaml: Path
    """The YAML file."""
    read: tuple[Path, ...]
    """The YAML files that the definition is made of."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The modules and the files of data of a task that is not the harness's own, by the name of the copy in the store."""

    @property
    def version(self) -> Any:
        """The task's version; None if it gives none."""
        metadata = self.config.get("metadata")
        return metadata.get("version") if isinstance(metadata, dict) else None

    @property
    def data(self) -> str | None:
        """The id of the data set on the hub; None if the data are files of the task."""
        path = self.config.get("dataset_path")
        return None if not isinstance(path, str) or path in FILES or path == "data" else path


def harness_version() -> str:
    """The version of the installed harness."""
    return importlib.metadata.version(HARNESS)


def harness_tasks() -> Path:
    """The folder of the harness's own tasks."""
    found = importlib.util.find_spec(HARNESS)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "tasks"


def own_definition(name: str) -> Definition:
    """Return the harness's own task of a name. Raises StudyError if it has none, which names the nearest."""
    place = harness_tasks()
    kinds: dict[str, tuple[str, Path]] = {}
    members: dict[str, list[str]] = {}
    # A file of the task's name is the usual case, and reading all fourteen thousand files takes a second.
    for path in [*place.rglob(f"{name}.yaml"), *place.rglob("*.yaml")]:
        named = _names(path)
        for kind, own in named:
            if kind == "task" and own == name:
                config, read = _load(path)
                return Definition(_checked(config, path), path, read)
            kinds.setdefault(own, (kind, path))
        tasks = [own for kind, own in named if kind == "task"]
        for kind, own in named:
            if kind != "task":
                members.setdefault(own, []).extend(tasks)
    if name in kinds:
        some = ", ".join(members[name][:3]) or f"those in {kinds[name][1]}"
        raise StudyError(f"{name} is a {kinds[name][0]} of several tasks; name single tasks, such as {some}")
    near = difflib.get_close_matches(name, [own for own, (kind, _) in kinds.items() if kind == "task"], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise StudyError(
        f"the harness has no task of this name{hint}; correct it, or give the path of a YAML file with this task"
    )


def local_definition(name: str, task: Task, folder: Path) -> Definition:
    """Return a task of the user's own. folder: what its path is relative to.

    Raises StudyError for a file that defines no such task, MissingResourceError for one that is not found.
    """
    assert task.path is not None
    place = folder / expanded(task.path, folder, "path: ")
    path = _file_of(name, place) if place.is_dir() else place
    config, read = _load(path)
    config = _checked(config, path)
    files: dict[str, Path] = {}
    config = _with_modules(config, files)
    if isinstance(config.get("dataset_path"), str):
        _take_data(config, path.parent, files)
    return Definition(config, path, read, files)


def metrics_of(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether higher is better, by the name of each metric: METRIC, or METRIC@FILTER where the task filters answers."""
    filters = [str(one.get("name")) for one in config.get("filter_list") or [] if isinstance(one, dict)] or ["none"]
    named: dict[str, bool] = {}
    for one in config.get("metric_list") or [
        {"metric": name} for name in METRICS.get(config.get("output_type", "generate_until"), ())
    ]:
        metric = one.get("metric")
        name = metric[FUNCTION].rpartition(".")[2] if isinstance(metric, dict) else str(metric)
        named[name] = bool(one.get("higher_is_better", name not in LOWER))
    return {
        name if chosen == "none" else f"{name}@{chosen}": higher for chosen in filters for name, higher in named.items()
    }


def _names(path: Path) -> list[tuple[str, str]]:
    """What a YAML file names at its top level, as pairs of task, group or tag and the name; empty if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return NAME.findall(path.read_text(encoding="utf-8"))
    return []


def _file_of(name: str, folder: Path) -> Path:
    """The YAML file below a folder whose task has a name. Raises StudyError."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        for kind, own in _names(path):
            if kind == "task":
                found.setdefault(own, path)
    if name not in found:
        raise StudyError(
            f"path: no YAML file in {shown(folder)} has `task: {name}` (there are {', '.join(found) or 'none'}); name the "
            "file, or correct the name of the task"
        )
    return found[name]


class _Loader(yaml.SafeLoader):
    """Reads `!function module.name` as a mapping with the folder of the file."""

    folder: Path


def _function(loader: _Loader, node: yaml.ScalarNode) -> dict[str, str]:
    return {FUNCTION: str(loader.construct_scalar(node)), FOLDER: str(loader.folder)}


_Loader.add_constructor(FUNCTION, _function)


def _load(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The fields of a YAML file over those of the files that it includes, and all these files.

    Raises StudyError, MissingResourceError.
    """
    where = shown(path)
    if path.resolve() in above:
        raise StudyError(f"{where} includes itself; remove one of the includes")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        loader.folder = path.parent
        fields = loader.get_single_data()
    except FileNotFoundError:
        raise MissingResourceError(f"{where} is not found; correct the path") from None
    except OSError as error:
        raise MissingResourceError(f"{where} cannot be read ({os_reason(error)}); make it readable") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{where} is not valid YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(fields, dict):
        raise StudyError(f"{where} holds no fields of a task; write `task: NAME` and the others")
    merged: dict[str, Any] = {}
    read = [path]
    included = fields.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        inner, files = _load(path.parent / str(name), (*above, path.resolve()))
        merged |= inner
        read += files
    return merged | fields, tuple(read)


def _checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a task that decide its numbers. Raises StudyError for what is no task in YAML."""
    if "class" in config:
        raise StudyError(f"{shown(path)} defines the task in Python (class), which Retain does not run; name another")
    if not isinstance(config.get("task"), str):
        raise StudyError(f"{shown(path)} defines no single task; write `task: NAME`")
    listed = config.get("metric_list") or []
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "metric" in one for one in listed):
        raise StudyError(f"{shown(path)}: metric_list: expected a list with `metric: NAME` in each entry")
    return {name: value for name, value in config.items() if name not in ("task", "task_alias", "tag", "group")}


def _with_modules(value: Any, files: dict[str, Path]) -> Any:
    """A copy of a value in which functions name the copy of their module, which is added to the files. Raises StudyError."""
    if isinstance(value, list):
        return [_with_modules(one, files) for one in value]
    if not isinstance(value, dict):
        return value
    if FUNCTION not in value:
        return {str(name): _with_modules(one, files) for name, one in value.items()}
    module = value[FUNCTION].rpartition(".")[0].replace(".", "/") + ".py"
    path = Path(value[FOLDER]) / module
    if not path.is_file():
        raise StudyError(
            f"!function {value[FUNCTION]}: {shown(path)} is not found; put the module beside the YAML file"
        )
    folders = {file: name for name, file in files.items()}
    name = folders.get(path) or f"code{len(files)}/{module}"
    files[name] = path
    return {FUNCTION: value[FUNCTION], FOLDER: name.removesuffix(f"/{module}")}


def _take_data(config: dict[str, Any], folder: Path, files: dict[str, Path]) -> None:
    """Add the files of data of a task to the files, and name their copies. Raises MissingResourceError if one is missing."""
    path, options = config["dataset_path"], dict(config.get("dataset_kwargs") or {})
    if path in FILES and "data_files" in options:
        options["data_files"] = _taken(options["data_files"], folder, files)
        config["dataset_kwargs"] = options
    elif path in FILES:
        raise StudyError(f"dataset_path: {path}: no files are named; write dataset_kwargs: {{data_files: FILE}}")
    elif (place := folder / path).is_dir():
        found = sorted(one for one in place.rglob("*") if one.is_file() and not one.name.startswith("."))
        files |= {f"data/{one.relative_to(place).as_posix()}": one for one in found}
        config["dataset_path"] = "data"


def _taken(patterns: Any, folder: Path, files: dict[str, Path]) -> Any:
    if isinstance(patterns, dict):
        return {str(split): _taken(own, folder, files) for split, own in patterns.items()}
    names = []
    try:
        found = find_files(patterns, folder)
    except MissingResourceError as error:
        raise MissingResourceError(f"dataset_kwargs.data_{error}") from None
    for path in found:
        names.append(f"data{len(files)}{''.join(path.suffixes)}")
        files[names[-1]] = path
    return names


def looked_in(data: str) -> list[Path]:
    """The folders in which the harness finds a data set of the hub without a network."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    return [home / data.replace("/", "___"), Path(constants.HF_HUB_CACHE) / f"datasets--{data.replace('/', '--')}"]


def absent_data(data: str | None) -> str:
    """Where a data set of the hub was looked for in vain, as the end of a sentence; empty if it is there, or there is none."""
    places = looked_in(data) if data else []
    for place in places:
        siblings = place.parent.iterdir() if place.parent.is_dir() else ()
        if any(one.name.lower() == place.name.lower() for one in siblings):  # datasets changes some letters
            return ""
    where = " nor as ".join(map(shown, places))
    return f"its data set {data} is not on this machine, neither as {where}" if places else ""
