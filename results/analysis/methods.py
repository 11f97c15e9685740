"""The method and the pipeline of a trial."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from pydantic import BaseModel

from retain.results.analysis.axes import EXPOSURE, METHOD, PIPELINE
from retain.results.store.loss_table import Row
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


def has_claims(study: Study | LinearStudy) -> TypeGuard[Study]:
    """Whether the paper's claims are about a study: its chain has the paper's three stages, whatever others it has."""
    return isinstance(study, Study) and set(STAGE_KINDS) <= set(study.stages)


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


def with_fixed(rows: Iterable[Row], fixed: Mapping[str, Any]) -> list[Row]:
    """Copies of the rows with the study's fixed values of the method's fields added to their axes.

    Rows with an axis `method`, and fields that are an axis already, stay as they are.
    """
    return [row if METHOD in row["axes"] else row | {"axes": {**fixed, **row["axes"]}} for row in rows]


def pipeline_of(row: Row) -> str | None:
    """The pipeline of a trial; None if the study has only one."""
    pipeline = row["axes"].get(PIPELINE)
    return None if pipeline is None else str(pipeline)
