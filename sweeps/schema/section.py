"""The base of every section of a study file, and the types that several sections use."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from retain.sweeps.base.units import parse_size

Size = Annotated[int, BeforeValidator(parse_size)]
"""A number of tokens, such as 200k or 8.7B."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

STAGE_KINDS = ("pretrain", "posttrain", "finetune")
"""The kinds of stages, in the order in which a trial trains them."""

_BOOLEAN_TYPES = (bool, bool | None, Literal["auto", True, False])


class Section(BaseModel):
    """A frozen section of a study file. Unknown fields, infinite numbers and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def reject_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject booleans outside of boolean fields: YAML reads yes, no, on and off as booleans, which count as 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in _BOOLEAN_TYPES:
            raise ValueError(f"{'yes' if value else 'no'} is not valid here; write a number or quoted text")
        return value
