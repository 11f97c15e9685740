"""What every section of a study file has in common: unknown fields are refused, and what a few fields are."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from retain.sweeps.base.units import parse_size

Size = Annotated[int, BeforeValidator(parse_size)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_WITH_BOOLEANS = (bool, bool | None, Literal["auto"] | bool)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, which would pass for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation not in _WITH_BOOLEANS:
            raise ValueError(f"{'yes' if value else 'no'} is not a value for this field; write a number or a text")
        return value
