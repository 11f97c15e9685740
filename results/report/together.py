"""Several studies of one store judged together, such as Figures 4 and 6, which only together hold all four methods."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from retain.results.analysis.methods import fixed_methods, with_fixed, with_pipelines
from retain.results.report.deviations import NOT_A_CHOICE, resolved, values_text
from retain.results.store.loss_table import Row
from retain.results.store.study_files import SavedLooks, looks_of
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import get_field
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import StudyFile


def pooled_rows(files: Sequence[StudyFile], rows: Sequence[Sequence[Row]]) -> list[Row]:
    """The trials of all studies, each once, with the axes that tell them apart; rows: those of each study.

    A grid's axis of one study is an axis of all, and so are the fields of the method, unless trials have named methods. Axes of
    cases that choose corpora become the axis `pipeline`. Raises StudyError if the studies differ in anything else, because
    their trials could not be compared.
    """
    if len(files) > 1:
        _check_comparable(files)
    axes = dict.fromkeys(axis for file in files for axis in file.axes)
    pooled: dict[str, Row] = {}
    for file, own in zip(files, rows, strict=True):
        missing = {axis: get_field(file.study, axis) for axis in axes if axis not in file.axes}
        methods = fixed_methods(file.study)
        for row in with_fixed(own, methods):
            named = row | {"axes": {**missing, **row["axes"]}}
            pooled.setdefault(repr(sorted(named["axes"].items())), named)
    return with_pipelines(list(pooled.values()))


def common_looks(files: Sequence[StudyFile], store: Path) -> SavedLooks | None:
    """The looks of studies that are judged together, as far as all of them have made them; None if none has any.

    Raises StudyError if their looks differ: no interval would count all of them.
    """
    each = [looks_of(store, file.study.study) for file in files]
    found = [looks for looks in each if looks is not None]
    if not found:
        return None
    plans = {(tuple(looks["seeds"]), tuple(looks["counts"])) for looks in found}
    if len(found) < len(each) or len(plans) > 1:
        names = " and ".join(file.path.name for file in files)
        raise StudyError(f"{names}: their seeds were added until decided, at different looks; report them one by one")
    return min(found, key=lambda looks: len(looks["made"]))


def _check_comparable(files: Sequence[StudyFile]) -> None:
    """Raise StudyError unless the studies have the same axes of cases, and equal cases and fields where both have them."""
    first, *others = files
    for file in files:
        if isinstance(file.study, LinearStudy):
            raise StudyError(f"{file.path.name}: a linear study cannot be reported with others; report it by itself")
    for other in others:
        pair = f"{first.path.name} and {other.path.name}"
        if first.study.stages != other.study.stages:
            raise StudyError(f"{pair} have different stages; report them one by one")
        if set(first.cases) != set(other.cases):
            raise StudyError(f"{pair} have different axes of cases; report them one by one")
        mine, theirs = _cases(first), _cases(other)
        for name in mine.keys() & theirs.keys():
            if mine[name] != theirs[name]:
                raise StudyError(f"{pair}: the case {name} sets different fields; report them one by one")
        for path, here, there in _differences(first, other):
            texts = (values_text(path, [value]) for value in (here, there))
            raise StudyError(
                f"{pair} differ in {path} ({' and '.join(texts)}), which is no axis; report them one by one"
            )


def _differences(first: StudyFile, other: StudyFile) -> Iterator[tuple[str, Any, Any]]:
    """The fields, set by no axis of either study, that differ between them, with both values."""
    swept = {*first.axes, *other.axes, *_set_by_cases(first), *_set_by_cases(other), *NOT_A_CHOICE}
    paths = dict.fromkeys(path for file in (first, other) for path, _ in resolved(file))
    for path in paths:
        if path not in swept and not path.startswith("model."):
            here, there = (_value(file, path) for file in (first, other))
            if here != there:
                yield path, here, there
    if first.study.model != other.study.model:
        yield "model", first.study.model, other.study.model


def _value(file: StudyFile, path: str) -> Any:
    """The value of a field; None if the study leaves out its section or its corpus."""
    if path.startswith("corpora."):
        _, name, part = path.split(".", 2)
        return getattr(file.study.corpora.get(name), part, None)
    return get_field(file.study, path)


def _set_by_cases(file: StudyFile) -> Iterator[str]:
    return (path for options in file.cases.values() for option in options for path in option.fields)


def _cases(file: StudyFile) -> dict[str, list[dict[str, Any]]]:
    """What each case of a study sets, by its axis and name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, options in file.cases.items():
        for option in options:
            found.setdefault(f"{axis} {option.labels[axis]}", []).append(option.fields)
    return found
