"""A study at a point of its axes: with the values that the options of the point set."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from retain.sweeps.schema.axes import Option
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import AnyStudy, StudyFile
from retain.sweeps.schema.stages import Component


def study_at(study: AnyStudy, options: Sequence[Option]) -> AnyStudy:
    """A copy of a study with the values of options."""
    return with_values(study, {path: value for option in options for path, value in option.fields.items()})


def with_values(study: AnyStudy, axes: Mapping[str, Any]) -> AnyStudy:
    """A copy of a study with other values, which must be checked already, at some dotted paths."""
    for axis, value in axes.items():
        study = _replaced(study, axis.split("."), value)
    return study


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        own = section.get(name) if isinstance(section, Mapping) else getattr(section, name)
        value = _replaced(own if isinstance(own, BaseModel | Mapping) else _default_section(section, name), rest, value)
    return {**section, name: value} if isinstance(section, Mapping) else section.model_copy(update={name: value})


def _default_section(section: BaseModel | Mapping[str, Any], name: str) -> BaseModel:
    """The defaults of a section that the study leaves out, or writes as a word, while an axis sets one of its fields.

    It may lack required fields: `check_section` checks it once all values are set.
    """
    if isinstance(section, Mapping):  # the corpora of a mixture
        return Component.model_construct()
    kinds = get_args(type(section).model_fields[name].annotation)
    kind: type[BaseModel] = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return kind.model_construct()


def models_of(file: StudyFile) -> list[Any]:
    """The distinct model sections of a study over its trials."""
    dimensions = [
        options
        for options in file.dimensions
        if any(path.partition(".")[0] == "model" for option in options for path in option.fields)
    ]
    found: list[Any] = []
    for options in itertools.product(*dimensions):
        model = study_at(file.study, options).model
        if model not in found:
            found.append(model)
    return found


def may_affect_average(option: Option, stages: Collection[str]) -> bool:
    """Whether an option may set the average of a stage of a chain, or on what stages are stopped early."""
    fields = ("average", "early_stopping", "early_stopping.split")
    return any(path in stages or path.partition(".")[2] in fields for path in option.fields)


def average_of(study: AnyStudy) -> float:
    """The share of the last stage's end in the weights whose losses are a trial's.

    Raises ValueError if these weights cannot be averaged.
    """
    if isinstance(study, LinearStudy):
        return 1.0
    study.check_average()
    return float(getattr(study.section(study.stages[-1]), "average", 1.0))
