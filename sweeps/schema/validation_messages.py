"""pydantic's validation errors as one sentence for the author of a study file or a site profile."""

import difflib
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retain.sweeps.base.errors import StudyError

Schema = TypeVar("Schema", bound=BaseModel)


def validate(schema: type[Schema], fields: Any, before: str) -> Schema:
    """The section that plain fields describe. Raises StudyError: `before`, then the first invalid field and the cure."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        raise StudyError(f"{before}{_first_sentence(error, schema)}") from None


def _first_sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first error in a `root` section, as `field: what is wrong; the cure`."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "[key]")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        section = root.model_fields if len(first["loc"]) == 1 else _fields_of(first["loc"], root)
        near = difflib.get_close_matches(str(first["loc"][-1]), section, n=1)
        cure = f"did you mean {near[0]}?" if near else f"the known fields are {', '.join(section)}"
        return f"{field}: unknown field; {cure}"
    if first["type"] == "missing":
        return f"{field}: this field is required"
    given = "" if isinstance(first["input"], dict) or first["type"] == "value_error" else f" (got {first['input']!r})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    # The message of a section's own check may begin with the field that the check is about.
    own = first["type"] == "value_error" and re.match(r"[a-z_.]+: ", message)
    return f"{field}{'.' if own else ': '}{message}{given}{more}" if field else f"{message}{more}"


def _fields_of(location: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    """The known fields of the section that holds an unknown field."""
    model: Any = root
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else model
        inner = [item for item in (annotation, *getattr(annotation, "__args__", ())) if hasattr(item, "model_fields")]
        model = inner[0] if inner else model
    return list(model.model_fields)
