"""What `retain fields` prints."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from retain.launchers.console import open_console
from retain.sweeps.reference.json_schema import study_schema
from retain.sweeps.reference.paths import Field

WIDEST = 100


def fields_document(field: Field | None, below: Sequence[Field]) -> dict[str, Any]:
    """`retain fields --json`: the field that was asked for, None for a study, and the fields below it."""
    return {"field": field and _plain(field), "fields": [_plain(one) for one in below]}


def print_fields(document: Mapping[str, Any]) -> None:
    """Print the fields, each with its type, its default and, indented, its meaning."""
    console = open_console()
    width = min(console.width, WIDEST)
    asked = [document["field"]] if document["field"] else []
    for field in [*asked, *document["fields"]]:
        default = "" if field["default"] == "-" else f", default {field['default']}"
        default = ", required" if field["default"] == "required" else default
        console.print(Text.assemble((field["path"], "bold"), f"  {field['type']}{default}"), soft_wrap=True)
        for line in textwrap.wrap(field["meaning"], width - 4):
            console.print(Text(f"    {line}"), soft_wrap=True)


def json_schema_text() -> str:
    """The JSON schema of study files, as a file holds it."""
    return json.dumps(study_schema(), indent=1, ensure_ascii=False) + "\n"


def _plain(field: Field) -> dict[str, str]:
    return {"path": field.path, "type": field.type_text, "default": field.default, "meaning": field.meaning}
