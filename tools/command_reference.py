"""The page of the docs site on the command line, generated from the help of each verb."""

from collections.abc import Iterator
from typing import Any

import typer

from retain.launchers.cli.app import app
from tools.docstrings import one_line

INTRODUCTION = """\
# Command line

`retain` is the only entry point. `STUDY` is the path of a study file, or the name of one of
[Retain's own studies](../studies.md). `RUN` is a stage key or its unique beginning. An override is `path=value`:
`pretrain.exposure=0.5` sets a field, `seed=[0,1,2]` makes it an axis.

The store is `--store`, `$RETAIN_STORE` or `runs`. With `--json`, a verb prints one JSON document on standard output, and
everything else on standard error.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | some run failed, or a check found a problem |
| 2 | wrong use, or an invalid study |
| 3 | the environment lacks something: SLURM, disk space, a corpus, a package |
| 130 | interrupted; the same command resumes |
"""


def command_reference() -> str:
    """The page, in Markdown."""
    return "\n".join([INTRODUCTION, *(section for name, verb in verbs().items() for section in _sections(name, verb))])


def verbs() -> dict[str, Any]:
    """The verbs by name, as typer's commands."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _sections(name: str, verb: Any) -> Iterator[str]:
    context = verb.context_class(verb, info_name=f"retain {name}")
    arguments = [one for one in verb.params if one.param_type_name == "argument"]
    usage = " ".join(["retain", name, *(str(one.metavar) for one in arguments), "[OPTIONS]"])
    yield f"## `retain {name}`\n\n{' '.join((verb.help or '').split())}\n\n```text\n{usage}\n```\n"
    rows = [(str(one.metavar), one.help or "") for one in arguments]
    rows += [record for one in verb.params if one not in arguments if (record := one.get_help_record(context))]
    lines = [
        "| argument or option | meaning |",
        "|---|---|",
        *(f"| `{left}` | {one_line(right)} |" for left, right in rows),
    ]
    yield "\n".join(lines) + "\n"
