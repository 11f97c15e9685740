"""pydantic's validation errors as one sentence for the author of a study file or a site profile."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import shortened
from retain.sweeps.schema.section import shown_value
from retain.sweeps.schema.stages import ONE, SEVERAL

WORDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_type": "expected text; quote a number that is meant as text",
    "string_too_short": "the text is empty; write at least one letter",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list, as in [a, b]",
    "tuple_type": "expected a list, as in [a, b]",
    "too_short": "too few values; write at least {min_length}",
    "too_long": "too many values; write at most {max_length}",
    "dict_type": "expected a mapping, as in {{name: value}}",
    "model_type": "expected a mapping of fields, as in {{field: value}}",
    "invalid_key": "the name of a field must be text",
    "literal_error": "unknown value; write {expected}",
}
"""What is wrong and the cure, for each type of error that the fields of a study can raise."""
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "Retain measures held-out losses only; remove the field": (
        "evaluation",
        "evaluations",
        "evaluate",
        "eval",
        "tasks",
    ),
    "write schedule": ("scheduler", "lr_schedule", "lr_scheduler"),
    "write optimizer": ("optimiser",),
    "the stages of this study are pretrain, posttrain and finetune; remove the field": ("stages",),
    "name the stage in `stages`, as in stages: [pretrain, midtrain, posttrain, finetune], and give it a corpus": (
        *("midtrain", "sft", "rlhf"),
    ),
    "the first stage of a chain follows no other; remove the field": ("start",),
    "write mix": ("mixture", "mixtures", "mixing"),
    "a stage is as long as its `tokens`, or several `passes` over them; write passes, or remove the field": (
        *("epochs", "steps", "max_steps"),
    ),
    "write lr": ("learning_rate",),
    "write batch": ("batch_size", "global_batch_size"),
    "write sequence_length": ("seq_len", "seq_length", "max_length", "context_length"),
}
"""What to write, by fields that other tools have and Retain does not."""


Schema = TypeVar("Schema", bound=BaseModel)


class InvalidError(StudyError):
    """A section is invalid."""

    def __init__(self, message: str, alone: Sequence[str]) -> None:
        super().__init__(message)
        self.alone = alone
        """The paths of the fields whose own values are invalid, whatever the others are."""


def validate(schema: type[Schema], fields: Any, before: str) -> Schema:
    """The section that plain fields describe. Raises InvalidError: `before`, then the first invalid field and the cure."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        alone = tuple(".".join(map(str, _location(one))) for one in error.errors() if one["type"] in WORDS)
        raise InvalidError(f"{before}{_first_sentence(error, schema)}", alone) from None


def _location(error: Mapping[str, Any]) -> list[int | str]:
    """The path of the field that one of pydantic's errors is about."""
    return [part for part in error["loc"] if part not in ("[key]", ONE, SEVERAL)]


def _first_sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first error in a `root` section, as `field: what is wrong; the cure`."""
    first = error.errors()[0]
    kind, location = first["type"], _location(first)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    context = first.get("ctx", {})
    if kind == "missing" and isinstance(location[-1], int):  # a list with too few values
        kind, context = "too_short", {"min_length": location[-1] + 1}
        del location[-1]
    field = shortened(".".join(map(str, location)))
    if kind == "extra_forbidden":
        return unknown_field(str(location[-1]), _fields_of(location, root), field)
    if kind == "missing":
        return f"{field}: this field is required; add it (retain fields explains what it takes)"
    if kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        # The message of a section's own check may begin with the field that the check is about.
        colon = "." if re.match(r"[a-z_.]+: ", message) else ": "
        return f"{field}{colon}{message}{more}" if field else f"{message}{more}"
    message = WORDS.get(kind, "invalid value; docs/reference/fields.md says what the field takes")
    if "expected" in context:  # values of Python: 'auto', True or False
        context = {"expected": re.sub("True|False", lambda value: value[0].lower(), context["expected"])}
    message = message.format(**context).replace("'", "")
    what, cure, after = message.partition(";")
    given = "" if isinstance(first["input"], dict) or first["input"] == "" else f" (got {shown_value(first['input'])})"
    return f"{field}: {what}{given}{cure}{after}{more}"


def unknown_field(name: str, known: Sequence[str], where: str = "") -> str:
    """The sentence about an unknown field. where: its path, if that is more than its name; known: the fields of its section."""
    return f"{where or shortened(name)}: unknown field; {_cure(name, known)}"


def written_otherwise(name: str) -> str | None:
    """What to write instead of a field that other tools have; None if no tool is known to have it."""
    return next((cure for cure, names in ELSEWHERE.items() if name in names), None)


def _cure(name: str, known: Sequence[str]) -> str:
    if name not in known and (cure := written_otherwise(name)):
        return cure
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"the known fields are {', '.join(known)}"


def _fields_of(location: Sequence[int | str], root: type[BaseModel]) -> list[str]:
    """The known fields of the section that holds an unknown field."""
    model: Any = root
    for part in location[:-1]:
        fields = getattr(model, "model_fields", {})
        # A section of a study that the schema does not name is that of a further stage.
        annotation = fields[part].annotation if part in fields else getattr(model, "further_section", model)
        model = next(_sections_in(annotation), model)
    return list(model.model_fields)


def _sections_in(annotation: Any) -> Iterator[Any]:
    """The sections that a type names, itself or anywhere inside it."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for inner in (getattr(annotation, "__origin__", None), *getattr(annotation, "__args__", ())):
        if inner is not None:
            yield from _sections_in(inner)
