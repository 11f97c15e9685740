"""The arguments and options that several verbs share, and the commands that their messages name."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

SOME_RUN_FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, the convention of shells."""

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in sweeps/studies.")]
MaybeStudy = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, for instance pretrain.exposure=0.5 or seed=[0,1,2]."),
]
RunKey = Annotated[str, typer.Argument(metavar="RUN", help="A stage key, or its unique beginning.")]
StudyOrRun = Annotated[
    str, typer.Argument(metavar="STUDY|RUN", help="A study, or the key of a run: that run and all runs below it.")
]
StorePath = Annotated[Path, typer.Option("--store", envvar="RETAIN_STORE", help="The store of runs.")]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="A profile in sites.yaml; without it, the one that matches this machine, if any."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
RUNS = Path("runs")


def command(verb: str, name: str, overrides: Sequence[str] | None, store: Path) -> str:
    """A command that runs as it is printed: with the same study, overrides and store."""
    default = Path(os.environ.get("RETAIN_STORE") or RUNS)
    place = [] if store == default else ["--store", str(store)]
    return shlex.join(["retain", verb, name, *(overrides or ()), *place])
