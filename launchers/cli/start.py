"""Verbs for a study that does not exist yet: write one, look up its fields. Each imports what it needs when it is called."""

import re
from pathlib import Path
from typing import Annotated

import typer

from retain.launchers.cli.completion import complete_field, complete_study
from retain.launchers.cli.options import AsJson, show
from retain.sweeps.base.errors import StudyError

SCHEMA = "retain.schema.json"
"""The file beside a new study that editors read."""


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of the new study; its file is NAME.yaml.")
    ] = "study",
    source: Annotated[
        str,
        typer.Option(
            "--from", help="The study to copy: one of Retain's own, or a file.", autocompletion=complete_study
        ),
    ] = "laptop",
) -> None:
    """Write a study with comments into the working directory.

    A second file, retain.schema.json, lets editors complete and explain fields. No existing file is ever replaced.
    """
    from retain.launchers.cli.views.fields import json_schema_text
    from retain.sweeps.base.files import writing
    from retain.sweeps.schema.read import find_study, is_study
    from retain.sweeps.schema.section import check_name

    stem = name.removesuffix(".yaml")
    try:
        check_name(stem)
    except ValueError as error:
        raise StudyError(f"init: {error}") from None
    whole = f"from-{source}"  # so that --from checkpoint reads as it is meant
    text = _renamed(find_study(whole if is_study(whole) else source).read_text(encoding="utf-8"), stem)
    path, schema = Path(f"{stem}.yaml"), Path(SCHEMA)
    with writing(str(path), "choose another folder"):
        _write_new(path, f"# yaml-language-server: $schema={SCHEMA}\n{HEADER}\n\n{text}")
        if not schema.exists():
            _write_new(schema, json_schema_text())
    print(f"wrote {path} and {schema}; next: retain plan {path}")


HEADER = """\
# A study of Retain. `retain fields` explains every field, as does your editor if it has a YAML language server.
# To train on your own text, replace a corpus with files, which are read in the order of their names:
#   general: {files: "data/*.jsonl.zst", text: body}     # text, jsonl or parquet; plain, gzip or zstd
# Then: retain plan FILE, retain run FILE; or on a cluster: retain doctor, retain submit FILE.
# The comment below is the question of the study, as `retain report` prints it: write your own."""


def fields(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A field, such as finetune.lr.", autocompletion=complete_field)
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of study files, for editors.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Explain a field of a study and the fields below it.

    Without a PATH, explains all fields of a study.
    """
    from retain.launchers.cli.views.fields import fields_document, json_schema_text, print_fields
    from retain.sweeps.reference.paths import find_fields

    if schema:
        print(json_schema_text(), end="")
        return
    show(fields_document(*find_fields(path)), as_json, print_fields)


def _renamed(text: str, name: str) -> str:
    """A study file under another name."""
    renamed, count = re.subn(r"^study:.*$", f"study: {name}", text, count=1, flags=re.MULTILINE)
    return renamed if count else f"study: {name}\n{text}"


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise StudyError(f"{path} exists already, and init replaces no file; choose another NAME") from None
