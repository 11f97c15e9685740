"""Prepare the tasks of a study: what decides their numbers, and a copy in the store of those that are the user's own.

    <store>/tasks/<id>/     task.json; the modules and the files of data of a task that is not the harness's own

The id is the digest of the task and the harness's version. So a job measures what was there when it was submitted.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from retain.datamodules.corpora.find import shown
from retain.datamodules.corpora.sources import DEFINITION, Note, Source, digest, read_note, write_note
from retain.datamodules.corpora.tasks.definition import (
    FOLDER,
    FUNCTION,
    HARNESS,
    Definition,
    absent_data,
    harness_tasks,
    harness_version,
    local_definition,
    metrics_of,
    own_definition,
)
from retain.sweeps.base.building import new_build_folder, publish, removed_on_error
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, MissingResourceError, RetainError, StudyError, os_reason
from retain.sweeps.base.extras import require_extra
from retain.sweeps.base.redaction import redacted
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.stages import Task
from retain.sweeps.tree.data_facts import TaskFacts
from retain.sweeps.tree.keys import canonical

TASKS, TASK_FILE = "tasks", "task.json"
PACKAGES = (HARNESS, "accelerate")
"""What the harness needs to measure models of transformers."""
FORMAT = 1
"""The version of the copies in the store."""
Remark = Callable[[str, str], None]


class StoredTask(TypedDict):
    """The content of task.json."""

    task: dict[str, Any]
    """What is in the keys of its evaluations: name and version of the harness's own task, or the fingerprint of another."""
    harness: str
    """The version of the harness."""
    own: str | None
    """The YAML file of the harness's own task, relative to the harness's tasks; None for another."""
    config: dict[str, Any]
    """The fields of a task that is not the harness's own, as `Definition` has them; else empty."""
    metrics: dict[str, bool]
    """Whether higher is better, by the name of the metric."""
    shots: int
    """The number of examples that the task asks for itself."""
    fixed: bool
    """Whether the harness keeps the number of examples, whatever is asked for: the task sets it to 0."""
    data: str | None
    """Its data set on the hub; None if it has none."""


def tasks_of(file: StudyFile) -> dict[str, Task]:
    """The tasks that `evaluate` of a study names."""
    if isinstance(file.study, LinearStudy) or file.study.evaluate is None:
        return {}
    return dict(file.study.evaluate.tasks)


def task_facts(file: StudyFile, store: Path, remark: Remark | None = None) -> dict[str, TaskFacts]:
    """Return the facts of the tasks of a study by name. Writes nothing and reads no data set.

    remark: called with the field and a sentence for a task that has changed since it was last prepared, or can no longer be
    read, and whose facts are those of then; one that was never prepared is left out if something is missing to read it. None:
    facts of now.

    Raises StudyError for a task that does not exist or whose options are invalid, MissingResourceError if the harness or a
    file is missing.
    """
    found = {}
    for name, options in tasks_of(file).items():
        with _naming(file, name):
            if remark is None:
                stored: StoredTask | None = _current(file, store, name, options)
            else:
                stored = _remembered(file, store, name, options, remark)
            if stored is not None:
                found[name] = _facts_of(stored, options)
    return found


def prepare_tasks(file: StudyFile, store: Path) -> None:
    """Copy the tasks of a study into the store, and fetch their data sets. Raises as `task_facts` does."""
    for name, options in tasks_of(file).items():
        with _naming(file, name):
            require_extra("tasks", PACKAGES, "the lm-evaluation-harness", "remove the task")
            own = options.path is None
            definition = own_definition(name) if own else local_definition(name, options, file.folder)
            source, stored = _source_of(name, None if own else definition), _described(definition, name, options)
            _fetch(stored, definition)
            place = store / TASKS / _identity(stored)
            if not (place / TASK_FILE).exists():
                building = new_build_folder(store)
                with removed_on_error(building):
                    building.mkdir(parents=True)
                    for copy, path in definition.files.items():
                        (building / copy).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, building / copy)
                    write_document(building / TASK_FILE, stored)
                    publish(building, place, stored_task)
            for noted in (source, _definition_of(file, name, options)):
                if read_note(store, noted) != (note := Note(place.name, {})):
                    write_note(store, noted, note)


def task_id(task: dict[str, Any], harness: str) -> str:
    """The name of the folder of a task in the store."""
    return digest({"task": task, "harness": harness})


def _identity(stored: StoredTask) -> str:
    return task_id(stored["task"], stored["harness"])


def stored_task(folder: Path) -> StoredTask:
    """Read a task of the store. Raises DamageError if it is missing or damaged."""
    cure = "delete the folder, and prepare the study's data again"
    try:
        return read_document(folder / TASK_FILE, StoredTask, cure)
    except FileNotFoundError:
        raise DamageError(f"{folder / TASK_FILE} is missing; {cure}") from None


def harness_config(folder: Path, function: Callable[[str, Path], Any]) -> dict[str, Any]:
    """Return the fields of a stored task as the harness reads them. function: imports `module.name` of a folder."""

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(one) for one in value]
        if not isinstance(value, dict):
            return value
        if FUNCTION in value:
            return function(value[FUNCTION], folder / value[FOLDER])
        return {name: resolved(one) for name, one in value.items()}

    def placed(names: Any) -> Any:
        if isinstance(names, dict):
            return {split: placed(own) for split, own in names.items()}
        return [str((folder / name).absolute()) for name in names]

    config: dict[str, Any] = resolved(stored_task(folder)["config"])
    options = config.get("dataset_kwargs")
    if config.get("dataset_path") == "data":
        config["dataset_path"] = str((folder / "data").absolute())
    elif isinstance(options, dict) and "data_files" in options:
        config["dataset_kwargs"] = options | {"data_files": placed(options["data_files"])}
    return config


def _current(file: StudyFile, store: Path, name: str, options: Task) -> StoredTask:
    """A task as it is now, from the store if it has been prepared. Raises as `task_facts` does."""
    require_extra("tasks", PACKAGES, "the lm-evaluation-harness", "remove the task")
    # The harness's fourteen thousand files, and the data of another task, are only read if the store does not know it.
    definition = local_definition(name, options, file.folder) if options.path is not None else None
    if note := read_note(store, _source_of(name, definition)):
        with contextlib.suppress(DamageError):
            return stored_task(store / TASKS / note.fingerprint)
    return _described(definition or own_definition(name), name, options)


def _remembered(file: StudyFile, store: Path, name: str, options: Task, remark: Remark) -> StoredTask | None:
    """A task as it was last prepared, or as it is now if it never was; None if something is missing to read it.

    Raises StudyError.
    """
    last, problem, now = None, "the task has changed since it was prepared", None
    if note := read_note(store, _definition_of(file, name, options)):
        with contextlib.suppress(DamageError):
            last = stored_task(store / TASKS / note.fingerprint)
    try:
        now = _current(file, store, name, options)
    except RetainError as error:
        if last is None and not isinstance(error, MissingResourceError):
            raise
        problem = str(error)
    if now is None or (last is not None and _identity(last) != _identity(now)):
        remark(f"evaluate.tasks.{name}", problem)
    return last or now


def _described(definition: Definition, name: str, options: Task) -> StoredTask:
    """What the store keeps of a task. Raises as `task_facts` does."""
    own, shots = options.path is None, definition.config.get("num_fewshot")
    return StoredTask(
        task={"name": name, "version": definition.version} if own else {"fingerprint": _fingerprint(definition)},
        harness=harness_version(),
        own=definition.yaml.relative_to(harness_tasks()).as_posix() if own else None,
        config={} if own else definition.config,
        metrics=metrics_of(definition.config),
        shots=shots if isinstance(shots, int) else 0,
        fixed=shots == 0,
        data=definition.data,
    )


def _source_of(name: str, definition: Definition | None) -> Source:
    """The source of a task. definition: that of a task that is not the harness's own."""
    source: Source = {"format": FORMAT, "task": name, "harness": harness_version()}
    if definition is not None:
        paths = [*definition.read, *definition.files.values()]
        source["files"] = [[shown(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    return source


def _definition_of(file: StudyFile, name: str, options: Task) -> Source:
    return {DEFINITION: "task", "folder": shown(file.folder), "task": name, "path": options.path}


def _fingerprint(definition: Definition) -> str:
    """The digest of a task's fields and of the content of its modules and files of data, wherever they are."""
    try:
        contents = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in definition.files.items()}
    except OSError as error:
        raise MissingResourceError(f"{shown(error.filename)} cannot be read ({os_reason(error)})") from None
    try:
        json.dumps(definition.config, allow_nan=False)
        return digest({"config": definition.config, "files": contents})
    except (TypeError, ValueError) as error:
        raise StudyError(f"{shown(definition.yaml)}: {error}; write it as text or as a number") from None


def _facts_of(stored: StoredTask, options: Task) -> TaskFacts:
    """The facts of a task with the options of a study. Raises StudyError, MissingResourceError."""
    if options.shots and stored["fixed"]:
        raise StudyError("shots: the task sets num_fewshot: 0, which the harness keeps; remove shots")
    absent = absent_data(stored["data"])
    if absent and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise MissingResourceError(f"{absent}, and HF_HUB_OFFLINE is set; copy it there, or unset HF_HUB_OFFLINE")
    recipe: dict[str, Any] = {"task": stored["task"], "harness": stored["harness"], "seed": options.seed}
    recipe["shots"] = stored["shots"] if options.shots is None else options.shots
    if options.limit is not None:
        recipe["limit"] = options.limit
    canonical(recipe)
    return TaskFacts(recipe, stored["metrics"], absent)


def _fetch(stored: StoredTask, definition: Definition) -> None:
    """Download the data set of a task, unless it is there. Raises MissingResourceError if that fails."""
    if not stored["data"] or not (absent := absent_data(stored["data"])):
        return
    import datasets

    options = {k: v for k, v in (definition.config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    try:
        datasets.load_dataset(stored["data"], definition.config.get("dataset_name"), **options)
    except Exception as error:
        reason = " ".join(redacted(str(error)).split())[:200] or type(error).__name__
        raise MissingResourceError(
            f"{absent}, and it cannot be downloaded ({reason}); prepare the data where there is a network, or name other tasks"
        ) from error


@contextlib.contextmanager
def _naming(file: StudyFile, name: str) -> Iterator[None]:
    """Prefix errors with the study file and the task."""
    where = f"{file.path.name}: evaluate.tasks.{name}"
    try:
        yield
    except RetainError as error:
        field = str(error).startswith(("path: ", "shots: "))
        raise type(error)(f"{where}{'.' if field else ': '}{error}") from error
