"""The arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

SOME_RUN_FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in sweeps/studies.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, for instance pretrain.exposure=0.5 or seed=[0,1,2]."),
]
RunKey = Annotated[str, typer.Argument(metavar="RUN", help="A stage key, or as much of its beginning as is unique.")]
StorePath = Annotated[Path, typer.Option("--store", envvar="RETAIN_STORE", help="The store of runs.")]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="A profile of sites.yaml; without it, the one that matches this machine, if any does."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RUNS = Path("runs")
