"""The method, the setting and the pipeline of a trial: what tells the lines of figures and tables apart, and their names."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from pydantic import BaseModel

from retain.results.analysis.axes import (
    CORPORA,
    EXPOSURE,
    METHOD,
    PIPELINE,
    RECIPE,
    SIZE,
    axis_names,
    is_searched,
    varied_axes,
)
from retain.results.analysis.sisters.designs import is_sister
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.axes import get_field
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.schema.study import Study

METHODS = tuple(f"{base}{added}" for added in ("", "+dropout", "+replay", "+lora") for base in ("unmixed", "mixed"))
PIPELINES = {
    "music-chemistry": "Music → Chemistry",
    "music-instruction": "Music → Instruction",
    "instruction-chemistry": "Instruction → Chemistry",
    "instruction-music": "Instruction → Music",
}
"""The paper's pipelines in its order, with their titles."""
METHOD_FIELDS = (EXPOSURE, "posttrain.dropout", "posttrain.replay", "posttrain.method")
"""The fields that decide the method of a trial without an axis `method`."""
SHORT_NAMES = {EXPOSURE: "λ", SIZE: "|D_post|"}
"""What lines are called by, where the paper has a symbol for the axis."""


def has_claims(study: Study | LinearStudy) -> TypeGuard[Study]:
    """Whether claims are about a study: its chain has the paper's three stages, or its axes are those of another paper."""
    return isinstance(study, Study) and (
        set(STAGE_KINDS) <= set(study.stages) or is_sister([*study.grid, *study.cases])
    )


def fixed_methods(study: BaseModel) -> dict[str, Any]:
    """The fields of a study that decide the method of a trial, without those of stages that its chain does not have."""
    return {path: value for path in METHOD_FIELDS if (value := get_field(study, path)) is not None}


def method_of(row: Row) -> str:
    """The method of a trial: the value of its axis `method`, or else what the axes over `METHOD_FIELDS` say.

    Without exposure it is `unmixed` (also if exposure is not an axis), otherwise `mixed`; `+dropout`, `+replay` and
    `+lora` follow if an axis switches them on.
    """
    axes = row["axes"]
    if METHOD in axes:
        return str(axes[METHOD])
    parts = ["mixed" if axes.get(EXPOSURE) else "unmixed"]
    parts += [name for name in ("dropout", "replay") if axes.get(f"posttrain.{name}")]
    parts += ["lora"] if axes.get("posttrain.method") == "lora" else []
    return "+".join(parts)


def setting_axes(rows: Collection[Row]) -> list[str]:
    """The axes that tell lines apart: all that vary, besides seeds and what a line is swept over.

    A line is swept over the learning rates, and over averages of weights (WiSE-FT). A named method is also swept over its
    batches, as in the paper's figures, and over the lists inside its cases. Recipes of a search are named as a whole, and the
    points of a search are one line.
    """
    varied = varied_axes(rows)
    if any(map(is_searched, rows)):
        return [name for name in varied if name == RECIPE]
    swept = {"lr", "average", "batch"} if METHOD in varied else {"lr", "average"}
    kept = [name for name in varied if name.rpartition(".")[2] not in swept]
    if METHOD in varied:
        kept = [name for name in kept if all(name in row["axes"] for row in rows)]
    first = [name for name in (PIPELINE, *CORPORA, METHOD) if name in kept]
    return [*first, *(name for name in kept if name not in first)]


def setting_name(row: Row, axes: Sequence[str]) -> str:
    """The name of a trial's line by its values on these axes: `mixed, |D_post| = 50k`; `all trials` without any."""
    named = [(name, row["axes"][name]) for name in axes if name in row["axes"]]
    return ", ".join(_value_name(name, value, alone=len(named) == 1) for name, value in named) or "all trials"


def _value_name(name: str, value: Any, alone: bool) -> str:
    if name in (METHOD, PIPELINE) or (name == RECIPE and alone):
        return PIPELINES.get(str(value), str(value))
    is_size = name.endswith("tokens") and isinstance(value, int | float)
    return f"{SHORT_NAMES.get(name, name)} = {format_size(value) if is_size else _value_text(value)}"


def _value_text(value: Any) -> str:
    """A value as a study file would write it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_value_text(part)}' for name, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def with_fixed(rows: Iterable[Row], fixed: Mapping[str, Any]) -> list[Row]:
    """Copies of the rows with the study's fixed values of the method's fields added to their axes.

    Rows with an axis `method`, and fields that are an axis already, stay as they are.
    """
    return [row if METHOD in row["axes"] else row | {"axes": {**fixed, **row["axes"]}} for row in rows]


def pipeline_of(row: Row) -> str | None:
    """The pipeline of a trial: its case and the corpora that are axes, as in `D_post music, D_ft law`; None if the study has
    one pipeline."""
    axes = row["axes"]
    named = [str(axes[PIPELINE])] if axes.get(PIPELINE) is not None else []
    return ", ".join(named + [f"{symbol} {axes[name]}" for name, symbol in CORPORA.items() if name in axes]) or None


def names_pipeline(axis: str) -> bool:
    """Whether an axis tells pipelines apart, whose trials are not compared with each other."""
    return axis == PIPELINE or axis in CORPORA


def pipeline_axes(rows: Collection[Row]) -> list[str]:
    """The axes that tell pipelines apart: by their names, or because they alone choose D_post or D_ft."""
    return [name for name in axis_names(rows) if names_pipeline(name) or _chooses_corpus(rows, name)]


def with_pipelines(rows: Sequence[Row]) -> list[Row]:
    """The rows, in which axes of cases that choose corpora are the axis `pipeline`, whatever their names are."""
    choosing = [name for name in pipeline_axes(rows) if name not in CORPORA]
    if choosing in ([], [PIPELINE]):
        return list(rows)
    found = []
    for row in rows:
        named = {PIPELINE: ", ".join(str(row["axes"][name]) for name in choosing if name in row["axes"])}
        found.append(row | {"axes": named | {name: one for name, one in row["axes"].items() if name not in choosing}})
    return found


def _chooses_corpus(rows: Collection[Row], axis: str) -> bool:
    """Whether the trials of each case of an axis are post-trained, or fine-tuned, on one corpus that others are not."""
    if axis == METHOD or any(is_searched(row) or not isinstance(row["axes"].get(axis), str) for row in rows):
        return False
    for role in ("posttraining", "finetuning"):
        pairs = {(row["axes"][axis], row.get("corpora", {}).get(role)) for row in rows}
        values, corpora = ({pair[part] for pair in pairs} for part in (0, 1))
        if None not in corpora and len(corpora) > 1 and len(pairs) == len(values):
            return True
    return False
